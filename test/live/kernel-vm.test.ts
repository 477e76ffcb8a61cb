/** The VM with a kernel that has ESP and IPVS: that it is a host of a lab, and that what it does is what was asked for. */
import { createCipheriv, createDecipheriv, randomBytes } from 'node:crypto';
import { CommandError, ping, waitFor } from '../../cli/lab.js';
import { be16, concat, ethernet, ipv4, ipv6, mac, slowSum, station, vxlan } from '../support/frames.js';
import { ESP_IN_UDP_PORT, EspPeer, type KernelSa, refusals } from '../support/kernel-vm/esp.js';
import { VmMesh } from '../support/kernel-vm/mesh.js';
import { KernelVm } from '../support/kernel-vm.js';
import {
  inject,
  linkOf,
  live,
  overlayAddress,
  overlayMac,
  sendUdp,
  shared,
  sniff,
  underlayAddress,
} from '../support/live.js';

const skip = KernelVm.unavailable();

const mesh = shared(() => VmMesh.boot(), skip);

live(
  "VM: it runs Debian's kernel and is reached, and reaches others, over IPv4 and IPv6",
  async (t) => {
    const { vm, hosts } = mesh();
    const release = (await vm.run('uname', ['-r'])).trim();
    t.regex(release, /^\d+\.\d+\..*-cloud-amd64$/);
    t.log(`Linux ${release}`);
    const three = { count: 3, deadlineS: 10 };
    for (const v6 of [false, true]) {
      t.is((await ping(hosts[0], underlayAddress(2, v6), three)).received, 3);
      t.is((await ping(vm, underlayAddress(1, v6), three)).received, 3);
    }
  },
  { skip },
);

live(
  'VM: commands come back with their output, errors and exit codes, and a late one is killed',
  async (t) => {
    const { vm } = mesh();
    t.deepEqual(await vm.exec('printf', ['%s|', "it's", '$HOME', 'a\nb', 'é']), {
      code: 0,
      stdout: "it's|$HOME|a\nb|é|",
      stderr: '',
    });
    t.deepEqual(await vm.exec('sh', ['-c', 'echo out; echo err >&2; exit 3']), {
      code: 3,
      stdout: 'out\n',
      stderr: 'err\n',
    });
    const long = randomBytes(100_000).toString('base64');
    t.is(await vm.run('cat', [], { input: long }), long);
    t.deepEqual(await Promise.all(['a', 'b', 'c'].map((word) => vm.sh(`echo ${word}`))), [
      'a\n',
      'b\n',
      'c\n',
    ]);
    const failed = await t.throwsAsync(vm.run('ls', ['/nowhere']), { instanceOf: CommandError });
    t.regex(failed.message, /^vm: ls \/nowhere: exit code 1\n.*No such file/);
    await t.throwsAsync(vm.sh('sleep 60', { timeoutMs: 1000 }), { message: /^vm: sleep 60: killed/ });
    t.is(await vm.sh('echo still here'), 'still here\n');
  },
  { skip },
);

/** ESP by RFC 4303 and 4106, from and to a UDP datagram. */
const aad = ({ spi, esn }: KernelSa, sequence: number): Buffer => {
  const bytes = Buffer.alloc(esn ? 12 : 8);
  bytes.writeUInt32BE(spi, 0);
  if (esn) bytes.writeUInt32BE(Math.floor(sequence / 2 ** 32), 4);
  bytes.writeUInt32BE(sequence >>> 0, esn ? 8 : 4);
  return bytes;
};

function seal(sa: KernelSa, sequence: number, datagram: Uint8Array): Uint8Array {
  const iv = randomBytes(8);
  const cipher = createCipheriv('aes-128-gcm', sa.key.subarray(0, 16), concat(sa.key.subarray(16), iv));
  cipher.setAAD(aad(sa, sequence));
  const padding = Uint8Array.from({ length: (4 - ((datagram.length + 2) % 4)) % 4 }, (_, i) => i + 1);
  const text = cipher.update(concat(datagram, padding, Uint8Array.of(padding.length, 17)));
  cipher.final();
  const header = aad({ ...sa, esn: false }, sequence);
  return concat(header, iv, text, cipher.getAuthTag());
}

/** @throws Error when the ICV is not that of this sequence number */
function open(sa: KernelSa, sequence: number, esp: Uint8Array): Uint8Array {
  const nonce = concat(sa.key.subarray(16), esp.subarray(8, 16));
  const decipher = createDecipheriv('aes-128-gcm', sa.key.subarray(0, 16), nonce);
  decipher.setAAD(aad(sa, sequence)).setAuthTag(esp.subarray(-16));
  const text = decipher.update(esp.subarray(16, -16));
  decipher.final();
  return text.subarray(0, text.length - 2 - text[text.length - 2]);
}

/** VXLAN of VNI 42 as a UDP datagram, with an echo request of container 1 to the VM in it. */
function echoRequest(n: number, v6: boolean): Uint8Array {
  const icmp = concat(be16(0x0800, 0, 7, n), Buffer.from(`echo ${n} of the VM`));
  icmp.set(be16(~slowSum(icmp) & 0xffff), 2);
  const packet = ipv4({ source: overlayAddress(1), destination: overlayAddress(2), protocol: 1 }, icmp);
  const inner = ethernet({ to: mac(overlayMac(2)), from: station(1), type: 0x0800 }, packet);
  const [source, destination] = [underlayAddress(1, v6), underlayAddress(2, v6)];
  return vxlan({ source, destination, checksum: true }, inner).subarray(v6 ? 54 : 34);
}

/** Makes the VM container 2 of network 42; it knows container 1, so that it need not ask. */
async function joinOverlay(vm: KernelVm, v6: boolean): Promise<void> {
  const [local, remote] = [underlayAddress(2, v6), underlayAddress(1, v6)];
  const addresses = [`${overlayAddress(2)}/24`];
  await vm.vxlan({ vni: 42, local, remote, addresses, mac: overlayMac(2), mtu: 1350 });
  await vm.ipBatch([`neigh add ${overlayAddress(1)} lladdr 02:00:00:00:00:01 dev vxlan42`]);
}

const forms = [false, true].flatMap((v6) =>
  (['esp', 'udp'] as const).flatMap((encapsulation) =>
    [false, true].map((esn) => ({ v6, encapsulation, esn })),
  ),
);

for (const { v6, encapsulation, esn } of forms) {
  const udp = encapsulation === 'udp';
  const numbers = esn ? 'extended sequence numbers across 2^32' : '32-bit sequence numbers';
  live(
    `VM: its ESP over IPv${v6 ? 6 : 4}${udp ? ' in UDP' : ''}, ${numbers}: VXLAN goes in and out, and nothing else does`,
    async (t) => {
      const { vm, hosts } = mesh();
      const [local, remote] = [underlayAddress(2, v6), underlayAddress(1, v6)];
      const base = esn ? 2 ** 32 - 2 : 0;
      const key = (n: number) => Uint8Array.from({ length: 20 }, (_, i) => n * 32 + i);
      const [out, into] = [2, 1].map((n) => ({ spi: 0x1000 + n, key: key(n), esn, sequence: base }));
      await joinOverlay(vm, v6);
      const before = await refusals(vm);
      const peer = await EspPeer.up(vm, { local, remote, out, in: into, encapsulation });
      const sniffer = await sniff(hosts[0], 'under0', `src host ${local} and (proto 50 or udp)`);
      try {
        const macs = [0, 1].map((i) => mac(linkOf(hosts[i], 'under0')!.address));
        const outside = (protocol: number, content: Uint8Array) =>
          v6
            ? ipv6({ source: remote, destination: local, next: protocol }, content)
            : ipv4({ source: remote, destination: local, protocol }, content);
        const packet = (protocol: number, content: Uint8Array) =>
          ethernet({ from: macs[0], to: macs[1], type: v6 ? 0x86dd : 0x0800 }, outside(protocol, content));
        const send = (esp: Uint8Array) =>
          udp ? sendUdp(hosts[0], local, ESP_IN_UDP_PORT, esp) : inject(hosts[0], 'under0', packet(50, esp));
        const stateOf = async ({ spi }: KernelSa) => (await peer.states()).get(spi)!;

        const requests = [1, 2, 3].map((n) => seal(into, base + n, echoRequest(n, v6)));
        for (const request of requests) await send(request);
        await waitFor(async () => (await stateOf(into)).sequence === base + 3, { what: 'three packets' });
        t.like(await stateOf(into), { packets: 3, replayed: 0, failed: 0 });

        // Refused, each with its own counter: seen before, altered, and not encrypted.
        const altered = seal(into, base + 4, echoRequest(4, v6));
        altered[20] ^= 1;
        await send(requests[0]);
        await send(altered);
        await inject(hosts[0], 'under0', packet(17, echoRequest(5, v6)));
        const refused = { XfrmInStateSeqError: 1, XfrmInStateProtoError: 1, XfrmInTmplMismatch: 1 };
        const since = async () => {
          const now = await refusals(vm);
          const grown = Object.keys(now).map((name) => [name, now[name] - (before[name] ?? 0)] as const);
          return Object.fromEntries(grown.filter(([, count]) => count > 0));
        };
        await waitFor(async () => Object.keys(await since()).length >= 3, { what: 'three refusals' });
        t.deepEqual(await since(), refused);
        t.like(await stateOf(into), { sequence: base + 3, packets: 3, replayed: 1, failed: 1 });

        // The answers: ESP all of them, numbered on from what was asked for.
        t.like(await stateOf(out), { sequence: base + 3, packets: 3 });
        await waitFor(() => sniffer.frames().length >= 3, { what: 'three answers' });
        const answers = sniffer.frames().map((frame) => Buffer.from(frame, 'hex'));
        t.is(answers.length, 3);
        for (const [i, frame] of answers.entries()) {
          const transport = frame.subarray(v6 ? 54 : 34);
          t.is(frame[v6 ? 20 : 23], udp ? 17 : 50);
          if (udp) t.deepEqual([...transport.subarray(0, 4)], [...be16(ESP_IN_UDP_PORT, ESP_IN_UDP_PORT)]);
          const esp = transport.subarray(udp ? 8 : 0);
          t.is(esp.readUInt32BE(0), out.spi);
          t.is(esp.readUInt32BE(4), (base + 1 + i) >>> 0);
          const datagram = Buffer.from(open(out, base + 1 + i, esp));
          t.is(datagram.readUInt16BE(2), 4789);
          t.is(datagram.readUIntBE(12, 3), 42);
          t.true(datagram.includes(`echo ${i + 1} of the VM`));
        }
      } finally {
        await sniffer.stop();
        await peer.down();
        await vm.run('ip', ['link', 'del', 'vxlan42']);
      }
    },
    { tools: ['tcpdump', 'socat'], skip },
  );
}

live(
  'VM: it sends on another SA from one packet to the next, and takes both until the old one goes',
  async (t) => {
    const { vm } = mesh();
    const [local, remote] = [underlayAddress(2, false), underlayAddress(1, false)];
    const sa = (spi: number): KernelSa => ({ spi, key: randomBytes(20) });
    const echoes = (count: number) => ping(vm, overlayAddress(1), { count });
    await joinOverlay(vm, false);
    const peer = await EspPeer.up(vm, { local, remote, out: sa(0x2001), in: sa(0x3001) });
    try {
      await echoes(1);
      await peer.accept(sa(0x3002));
      await peer.sendOn(sa(0x2002));
      await echoes(2);
      const packets = async () => {
        const states = [...(await peer.states()).values()];
        return states.map(({ spi, packets }) => [spi, packets]).sort(([a], [b]) => a - b);
      };
      t.deepEqual(await packets(), [
        [0x2001, 1],
        [0x2002, 2],
        [0x3001, 0],
        [0x3002, 0],
      ]);
      await peer.remove(0x2001);
      await peer.remove(0x3001);
      t.deepEqual(await packets(), [
        [0x2002, 2],
        [0x3002, 0],
      ]);
    } finally {
      await peer.down();
      await vm.run('ip', ['link', 'del', 'vxlan42']);
    }
    t.is(await vm.run('ip', ['xfrm', 'state', 'list', 'nokeys']), '');
    t.is(await vm.run('ip', ['xfrm', 'policy', 'list']), '');
  },
  { skip },
);

live(
  'VM: IPVS is there, with the schedulers that Docker uses and others',
  async (t) => {
    const { vm } = mesh();
    await vm.run('modprobe', ['-a', 'ip_vs', 'ip_vs_rr', 'ip_vs_wrr', 'ip_vs_sh']);
    const service = `${underlayAddress(2, false)}:80`;
    for (const scheduler of ['rr', 'wrr', 'sh']) {
      await vm.sh(
        `ipvsadm -A -t ${service} -s ${scheduler} &&
        ipvsadm -a -t ${service} -r ${underlayAddress(1, false)}:8080 -m -w 3`,
      );
      const table = await vm.run('ipvsadm', ['-L', '-n']);
      t.regex(
        table,
        new RegExp(`TCP +${service} ${scheduler}\\s+-> ${underlayAddress(1, false)}:8080 +Masq +3`),
      );
      await vm.run('ipvsadm', ['-D', '-t', service]);
    }
  },
  { skip },
);

live(
  'VM: when it ends, whoever waits for it is told',
  async (t) => {
    const { vm } = mesh();
    await t.throwsAsync(vm.sh('poweroff -f; sleep 60'), {
      instanceOf: CommandError,
      message: /^vm: qemu ended/,
    });
    await t.throwsAsync(vm.sh('true'), { message: /^vm: qemu ended/ });
    await vm.close();
  },
  { skip },
);
