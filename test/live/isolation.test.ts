/** What must not pass, does not, and is counted: foreign VNIs, tags, our own packets, reserved bits, other tenants. */
import { type Namespace, ping } from '../../cli/lab.js';
import { concat, ethernet, mac, payload, vxlan } from '../support/frames.js';
import {
  inject,
  live,
  Mesh,
  type NodeFile,
  overlayAddress,
  overlayMac,
  Rig,
  seen,
  sendUdp,
  shared,
  sightings,
  sniff,
  underlayAddress,
} from '../support/live.js';

const tools = ['socat', 'tcpdump'];
/** Experimental EtherType (IEEE 802, local experimental 1). */
const FILTER = 'ether proto 0x88b5 or (vlan and ether proto 0x88b5)';
const BROADCAST = 'ff:ff:ff:ff:ff:ff';

/** A frame from container 1 that its first bytes of payload tell from all others. */
function frameTo(to: string, number: number, tags: readonly number[] = []): Uint8Array {
  return ethernet({ to: mac(to), from: mac(overlayMac(1)), tags }, concat(mark(number), payload(60)));
}

const mark = (number: number): Uint8Array => Uint8Array.of(0xc0, 0xff, 0xee, number >>> 8, number);

/** UDP payload of a VXLAN packet: header and inner frame. */
const vxlanPayload = (inner: Uint8Array, header = [8, 0, 0, 0, 0, 0, 42, 0]): Uint8Array =>
  concat(Uint8Array.from(header), inner);

for (const mode of ['auto', 'socket']) {
  const isolated = (title: string, body: Parameters<typeof live>[1]): void =>
    live(`${title} (underlay ${mode})`, body, { tools });
  const mesh = shared(() => Mesh.up({ hosts: 2, underlay: { mode } }));
  const carrying = shared(() => Mesh.up({ hosts: 2, underlay: { mode }, network: { inner_vlan: 'carry' } }));

  isolated('VLAN-tagged frames are dropped and counted by default', async (t) => {
    const { containers, engines } = mesh();
    const dropped = await engines[0].watchDrops();
    const sniffer = await sniff(containers[1], 'eth0', FILTER);
    await inject(containers[0], 'eth0', frameTo(BROADCAST, 1, [100]), frameTo(BROADCAST, 2, [100, 200]));
    await inject(containers[0], 'eth0', frameTo(BROADCAST, 3));
    await seen(sniffer, mark(3));
    t.is(sightings(sniffer, mark(1)), 0);
    t.is(sightings(sniffer, mark(2)), 0);
    t.is((await dropped())['vxlan-encap inner-vlan'], 2);
    await sniffer.stop();
  });

  isolated('VLAN-tagged frames from a peer are dropped and counted by default', async (t) => {
    const { containers, engines, hosts } = mesh();
    const dropped = await engines[0].watchDrops();
    const sniffer = await sniff(containers[0], 'eth0', FILTER);
    const send = (inner: Uint8Array) =>
      sendUdp(hosts[1], underlayAddress(1, false), 4789, vxlanPayload(inner));
    const from = mac(overlayMac(2));
    await send(ethernet({ to: mac(BROADCAST), from, tags: [7] }, concat(mark(10), payload(60))));
    await send(ethernet({ to: mac(BROADCAST), from }, concat(mark(11), payload(60))));
    await seen(sniffer, mark(11));
    t.is(sightings(sniffer, mark(10)), 0);
    t.deepEqual(await dropped(), { 'vxlan-decap inner-vlan': 1 });
    await sniffer.stop();
  });

  isolated('VLAN-tagged frames pass whole, tags and all, with inner_vlan: carry', async (t) => {
    const { containers, engines } = carrying();
    const watches = await Promise.all(engines.map((engine) => engine.watchDrops()));
    const sniffer = await sniff(containers[1], 'eth0', 'not ip6');
    const frames = [
      frameTo(BROADCAST, 20, [100]),
      frameTo(overlayMac(2), 21, [100]),
      frameTo('33:33:00:00:00:01', 22, [0xefff, 200]),
    ];
    await inject(containers[0], 'eth0', ...frames);
    for (const frame of frames) await seen(sniffer, frame);
    for (const number of [20, 21, 22]) t.is(sightings(sniffer, mark(number)), 1);
    for (const dropped of watches) t.deepEqual(await dropped(), {});
    await sniffer.stop();
  });

  isolated('a VNI that no network has is dropped and counted', async (t) => {
    const { containers, engines, hosts } = mesh();
    const dropped = await engines[0].watchDrops();
    const sniffer = await sniff(containers[0], 'eth0', FILTER);
    const inner = (number: number) =>
      ethernet({ to: mac(BROADCAST), from: mac(overlayMac(2)) }, concat(mark(number), payload(60)));
    const to = underlayAddress(1, false);
    await sendUdp(hosts[1], to, 4789, vxlanPayload(inner(30), [8, 0, 0, 0, 0, 0, 43, 0]));
    await sendUdp(hosts[1], to, 4789, vxlanPayload(inner(31), [8, 0, 0, 0, 1, 0, 42, 0]));
    await sendUdp(hosts[1], to, 4789, vxlanPayload(inner(32)));
    await seen(sniffer, mark(32));
    t.is(sightings(sniffer, mark(30)) + sightings(sniffer, mark(31)), 0);
    t.deepEqual(await dropped(), { 'vxlan-decap unknown-vni': 2 });
    await sniffer.stop();
  });

  isolated(
    'reserved bits are ignored by default; a missing I flag and runts are dropped and counted',
    async (t) => {
      const { containers, engines, hosts } = mesh();
      const dropped = await engines[0].watchDrops();
      const sniffer = await sniff(containers[0], 'eth0', FILTER);
      const inner = (number: number) =>
        ethernet({ to: mac(BROADCAST), from: mac(overlayMac(2)) }, concat(mark(number), payload(60)));
      const to = underlayAddress(1, false);
      await sendUdp(hosts[1], to, 4789, vxlanPayload(inner(40), [0xff, 0xff, 0xff, 0xff, 0, 0, 42, 0xff]));
      await sendUdp(hosts[1], to, 4789, vxlanPayload(inner(41), [0, 0, 0, 0, 0, 0, 42, 0]));
      await sendUdp(hosts[1], to, 4789, vxlanPayload(Uint8Array.of(1, 2, 3, 4)));
      await sendUdp(hosts[1], to, 4789, vxlanPayload(inner(42)));
      await seen(sniffer, mark(42));
      t.is(sightings(sniffer, mark(40)), 1);
      t.is(sightings(sniffer, mark(41)), 0);
      t.deepEqual(await dropped(), { 'vxlan-decap no-vni-flag': 1, 'vxlan-decap inner-runt': 1 });
      await sniffer.stop();
    },
  );

  isolated('a packet with our own VTEP as its source is dropped and counted', async (t) => {
    const { containers, engines, hosts } = mesh();
    // Linux itself takes such packets for martians, unless told otherwise: what is tested is Weft.
    const card = JSON.parse(hosts[0].ip('-j', 'link', 'show', 'under0'))[0].address as string;
    await hosts[0].run('sysctl', ['-q', '-w', 'net.ipv4.conf.under0.accept_local=1']);
    await hosts[0].run('sysctl', ['-q', '-w', 'net.ipv4.conf.all.rp_filter=0']);
    await hosts[0].run('sysctl', ['-q', '-w', 'net.ipv4.conf.under0.rp_filter=0']);
    const dropped = await engines[0].watchDrops();
    const sniffer = await sniff(containers[0], 'eth0', FILTER);
    const packet = (source: string, number: number): Uint8Array => {
      const inner = ethernet(
        { to: mac(BROADCAST), from: mac(overlayMac(2)) },
        concat(mark(number), payload(60)),
      );
      const outer = vxlan({ source, destination: underlayAddress(1, false) }, inner);
      outer.set(mac(card), 0);
      return outer;
    };
    await inject(hosts[1], 'under0', packet(underlayAddress(1, false), 50));
    await inject(hosts[1], 'under0', packet(underlayAddress(2, false), 51));
    await seen(sniffer, mark(51));
    t.is(sightings(sniffer, mark(50)), 0);
    t.deepEqual(await dropped(), { 'vxlan-decap own-source': 1 });
    await sniffer.stop();
  });

  isolated('reserved_bits: strict drops what has any set, and accept: peers what no peer sent', async (t) => {
    const { hosts, containers, engines } = carrying();
    const file = carrying().fileOf(1);
    await engines[0].stop();
    engines[0].write({ ...file, underlay: { ...file.underlay, reserved_bits: 'strict', accept: 'peers' } });
    await engines[0].start();
    const dropped = await engines[0].watchDrops();
    const sniffer = await sniff(containers[0], 'eth0', FILTER);
    const inner = (number: number) =>
      ethernet({ to: mac(BROADCAST), from: mac(overlayMac(2)) }, concat(mark(number), payload(60)));
    const to = underlayAddress(1, false);
    await sendUdp(hosts[1], to, 4789, vxlanPayload(inner(60), [8, 0, 0, 1, 0, 0, 42, 0]));
    await sendUdp(hosts[1], to, 4789, vxlanPayload(inner(61), [8, 0, 0, 0, 0, 0, 42, 1]));
    await sendUdp(hosts[1], to, 4789, vxlanPayload(inner(62), [0x88, 0, 0, 0, 0, 0, 42, 0]));
    hosts[1].addAddresses('under0', ['192.168.50.77/32']);
    hosts[1].ip('route', 'add', '192.168.50.1/32', 'dev', 'under0', 'src', '192.168.50.77');
    await sendUdp(hosts[1], to, 4789, vxlanPayload(inner(63)));
    hosts[1].ip('route', 'del', '192.168.50.1/32', 'dev', 'under0');
    await sendUdp(hosts[1], to, 4789, vxlanPayload(inner(64)));
    await seen(sniffer, mark(64));
    for (const number of [60, 61, 62, 63]) t.is(sightings(sniffer, mark(number)), 0, String(number));
    t.deepEqual(await dropped(), { 'vxlan-decap reserved-bits': 3, 'vxlan-decap unknown-vtep': 1 });
    await sniffer.stop();
  });
}

/** Two hosts, two networks, and in each network the same addresses and MACs. */
class Tenants extends Rig {
  readonly hosts: Namespace[];
  /** Containers by network, then by host. */
  readonly containers: Record<'red' | 'green', Namespace[]>;

  constructor() {
    super();
    this.hosts = [1, 2].map((n) => this.lab.host(`h${n}`));
    const of = (name: string): Namespace[] => [1, 2].map((n) => this.lab.host(`${name}${n}`));
    this.containers = { red: of('red'), green: of('green') };
    const addresses = [1, 2].map((n) => [`${underlayAddress(n, false)}/24`]);
    this.lab.bridgeUnderlay(this.hosts, { addresses });
  }

  fileOf(n: number): NodeFile {
    const peers = [underlayAddress(3 - n, false)];
    const names = ['red', 'green'] as const;
    return {
      underlay: { address: underlayAddress(n, false) },
      networks: names.map((name, i) => ({ name, vni: 100 + i, subnet: '10.0.9.0/24', peers })),
      endpoints: names.map((name) => ({
        name: `${name}${n}`,
        network: name,
        netns: this.containers[name][n - 1].name,
        interface: 'eth0',
        address: `${overlayAddress(n)}/24`,
      })),
    };
  }
}

const tenants = shared(async () => {
  const rig = new Tenants();
  await rig.start(...rig.hosts.map((host, i) => rig.engine(host, rig.fileOf(i + 1))));
  return rig;
});

live(
  'two networks with the same addresses and MACs on the same two hosts are kept apart',
  async (t) => {
    const { red, green } = tenants().containers;
    const redSniffer = await sniff(red[1], 'eth0', 'ip or ether proto 0x88b5');
    const greenSniffer = await sniff(green[1], 'eth0', 'ip or ether proto 0x88b5');
    t.true((await ping(red[0], overlayAddress(2), { count: 5, deadlineS: 10 })).received >= 5);
    // Broadcast and unicast, with the very addresses that the other network has too.
    await inject(red[0], 'eth0', frameTo(BROADCAST, 70), frameTo(overlayMac(2), 71));
    await inject(green[0], 'eth0', frameTo(BROADCAST, 72), frameTo(overlayMac(2), 73));
    await seen(redSniffer, mark(71));
    await seen(greenSniffer, mark(73));
    const found = (sniffer: typeof redSniffer) => [70, 71, 72, 73].map((n) => sightings(sniffer, mark(n)));
    t.deepEqual(found(redSniffer), [1, 1, 0, 0]);
    t.deepEqual(found(greenSniffer), [0, 0, 1, 1]);
    // Five pings and two frames; green saw its own two and no ping.
    t.is(redSniffer.frames().length, 7);
    t.is(greenSniffer.frames().length, 2);
    t.true((await ping(green[0], overlayAddress(2), { count: 5, deadlineS: 10 })).received >= 5);
    await redSniffer.stop();
    await greenSniffer.stop();
  },
  { tools },
);
