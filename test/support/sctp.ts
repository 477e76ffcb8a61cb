/**
 * Ends of SCTP associations by scapy, since many kernels have no SCTP: the four packets that set one up, and data (RFC
 * 9260, 5.1). Each tells of every packet that it hears, and whether its CRC32c is right. A raw socket keeps the kernel
 * from answering that it does not know the protocol.
 */
import type { Namespace, RunningCommand } from '../../cli/lab.js';

const PYTHON = '/usr/bin/python3';

const PROGRAM = `
import json, socket, struct, sys
from scapy.layers.sctp import *
SCTP_PROTOCOL = 132
ANSWERS = {
    1: lambda p: SCTPChunkInitAck(init_tag=7, params=SCTPChunkParamStateCookie(cookie=b'weft')),
    10: lambda p: SCTPChunkCookieAck(),
    0: lambda p: SCTPChunkSACK(cumul_tsn_ack=p[SCTPChunkData].tsn),
}
wire = socket.socket(socket.AF_INET, socket.SOCK_RAW, SCTP_PROTOCOL)

def hear():
    while True:
        packet, (source, _) = wire.recvfrom(65535)
        data = packet[(packet[0] & 15) * 4:]
        given, = struct.unpack('>I', data[8:12])
        right = crc32c(data[:8] + bytes(4) + data[12:]) == given
        heard = SCTP(data)
        chunk = data[12]
        print(json.dumps([source, heard.sport, heard.dport, chunk, right]), flush=True)
        yield source, heard, chunk

def send(to, sport, dport, tag, chunk):
    wire.sendto(bytes(SCTP(sport=sport, dport=dport, tag=tag) / chunk), (to, 0))

def serve():
    print('serving', flush=True)
    tags = {}
    for source, heard, chunk in hear():
        if chunk == 1: tags[source, heard.sport] = heard[SCTPChunkInit].init_tag
        if chunk in ANSWERS:
            send(source, heard.dport, heard.sport, tags[source, heard.sport], ANSWERS[chunk](heard))

def associate(to, dport, sport):
    wire.settimeout(10)
    # Connected, it hears of ICMP errors.
    wire.connect((to, 0))
    heard = hear()
    def ask(tag, chunk, answer):
        send(to, int(sport), int(dport), tag, chunk)
        while True:
            _, packet, got = next(heard)
            if got == answer and packet.dport == int(sport): return packet
    first = ask(0, SCTPChunkInit(init_tag=5, init_tsn=1, a_rwnd=65536, n_out_streams=1, n_in_streams=1), 2)
    tag = first[SCTPChunkInitAck].init_tag
    ask(tag, SCTPChunkCookieEcho(cookie=b'weft'), 11)
    ask(tag, SCTPChunkData(beginning=1, ending=1, tsn=1, data=b'hello'), 3)

globals()[sys.argv[1]](*sys.argv[2:])
`;

/** Chunk types of the packets that a server and a client hear. */
export const TO_SERVER = [1, 10, 0];
export const TO_CLIENT = [2, 11, 3];

/** Who sent a packet, the ports in it, the type of its first chunk, and whether its CRC32c is right. */
export type Heard = readonly [
  source: string,
  sourcePort: number,
  port: number,
  chunk: number,
  right: boolean,
];

const heard = (stdout: string): Heard[] =>
  stdout
    .split('\n')
    .filter((line) => line.startsWith('['))
    .map((line) => JSON.parse(line) as Heard);

/** Answers associations at any port; `stop` resolves with what it heard. */
export async function sctpServer(at: Namespace): Promise<{ stop(): Promise<Heard[]> }> {
  const running: RunningCommand = at.start(PYTHON, ['-c', PROGRAM, 'serve']);
  await running.output(/^serving$/m, { timeoutMs: 30_000 });
  return {
    stop: async () => heard((await running.stop()).stdout),
  };
}

/** Sets an association up and sends data. Resolves with what was heard; throws where an answer does not come. */
export async function associate(
  from: Namespace,
  to: string,
  port: number,
  sourcePort: number,
): Promise<Heard[]> {
  return heard(await from.run(PYTHON, ['-c', PROGRAM, 'associate', to, String(port), String(sourcePort)]));
}
