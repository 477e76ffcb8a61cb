/** The UDP socket over which hosts agree on keys: bound to the VTEP's address, to and from one port on every host. */
import { createSocket, type Socket } from 'node:dgram';
import { once } from 'node:events';
import { parseIp, ValueError } from '../addresses.js';
import { hostError } from '../config.js';
import { socketProblem } from '../host.js';

/** Bytes that wait to be read: when a host starts, all its peers may speak at once. */
const RECEIVE_BUFFER = 1 << 20;

export class ExchangeSocket {
  /** Gets each datagram with the canonical address it came from. */
  receive: (from: string, message: Uint8Array) => void = () => undefined;

  private constructor(
    readonly port: number,
    private readonly socket: Socket,
  ) {
    socket.on('message', (message, { address }) => {
      const from = canonical(address);
      if (from !== undefined) this.receive(from, message);
    });
    // What cannot be sent or read now is repeated by the exchange, as if lost.
    socket.on('error', () => undefined);
  }

  /** @throws ConfigError that points into the node's file when the port is taken, or cannot be had. */
  static async open(file: string, address: string, port: number): Promise<ExchangeSocket> {
    const v6 = parseIp(address).family === 6;
    const socket = createSocket({ type: v6 ? 'udp6' : 'udp4', ipv6Only: v6 });
    try {
      socket.bind({ address, port, exclusive: true });
      await once(socket, 'listening');
      socket.setRecvBufferSize(RECEIVE_BUFFER);
      return new ExchangeSocket(port, socket);
    } catch (error) {
      socket.close();
      const path = ['encryption', 'exchange_port'];
      const remedy =
        'stop what listens there ("ss -ulpn" shows it), or choose another exchange_port here and at every peer';
      const paths = { taken: path, otherwise: path };
      throw hostError(file, [socketProblem(error as Error, address, port, paths, remedy)]);
    }
  }

  /** Never throws; what cannot be sent is lost, as it may be anywhere on the way. */
  send(peer: string, message: Uint8Array): void {
    try {
      this.socket.send(message, this.port, peer, () => undefined);
    } catch {
      // Closed meanwhile.
    }
  }

  close(): void {
    this.receive = () => undefined;
    this.socket.close();
  }
}

function canonical(address: string): string | undefined {
  try {
    return parseIp(address).text;
  } catch (error) {
    // Link-local addresses come with a zone, and are no VTEP's.
    if (error instanceof ValueError) return undefined;
    throw error;
  }
}
