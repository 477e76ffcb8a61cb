/** Weft and a kernel vxlan as peers, with the offloads of either side on and off: what is on the wire is sound. */
import type { ExecutionContext } from 'ava';
import { echoServer, offloads, pythonMissing } from '../../bench/wire-traffic.js';
import { kernelVxlan } from '../../cli/lab.js';
import { live, Mesh, overlayAddress, overlayMac, shared, underlayAddress } from '../support/live.js';
import { assertSound, type Case, exchange, sentBy, wire } from '../support/offload.js';

const requirements = { tools: ['tcpdump', 'tshark', 'ethtool'], skip: pythonMissing() };
const CASES: readonly Case[] = ['bulk', 'no-timestamps', 'ecn', 'urgent', 'push', 'uso-full', 'fragments'];

type State = 'on' | 'off';

async function besideKernel(v6: boolean, mode: string): Promise<Mesh> {
  const mesh = await Mesh.up({ hosts: 2, v6, without: [2], underlay: { mode } });
  try {
    kernelVxlan(mesh.hosts[1], mesh.containers[1], {
      vni: 42,
      local: underlayAddress(2, v6),
      remote: underlayAddress(1, v6),
      underlayDev: 'under0',
      address: [`${overlayAddress(2)}/24`, `${overlayAddress(2, true)}/64`],
      mac: overlayMac(2),
      mtu: v6 ? 1430 : 1450,
    });
    // What host 1 left to be done is done by the port in front of host 2, where it is seen.
    await offloads(mesh.switch, 'p1', 'off');
    await mesh.hosts[1].run('ethtool', ['-K', 'under0', 'gro', 'off']);
  } catch (error) {
    mesh.close();
    throw error;
  }
  return mesh;
}

async function talk(t: ExecutionContext, mesh: Mesh, v6: boolean, ours: State, theirs: State) {
  const [a, b] = mesh.containers;
  await offloads(mesh.hosts[0], 'under0', ours);
  await offloads(mesh.hosts[1], 'under0', theirs);
  const servers = [await echoServer(a, overlayAddress(1, true)), await echoServer(b, overlayAddress(2))];
  const dropped = await mesh.engines[0].watchDrops();
  const capture = await wire(mesh, mesh.hosts[1], 'under0');
  await exchange(t, a, overlayAddress(2), CASES);
  await exchange(t, b, overlayAddress(1, true), CASES);
  const packets = await capture.stop();
  for (const server of servers) await server.stop();
  // With offloads on, host 2 leaves its packets to whoever is behind the capture.
  const judged = theirs === 'off' ? packets : sentBy(packets, 1, v6);
  t.true(sentBy(judged, 1, v6).length > 500, `${judged.length} packets`);
  assertSound(t, judged, v6);
  t.deepEqual(await dropped(), {});
  t.is((await mesh.engines[0].status()).slotsInUse, 0);
}

for (const mode of ['uplink', 'socket'] as const) {
  // A veth hands a socket packets whose inner checksum nobody has filled in (docs/kernel-peer.md).
  const states: readonly State[] = mode === 'uplink' ? ['on', 'off'] : ['off'];
  for (const v6 of [false, true]) {
    const mesh = shared(() => besideKernel(v6, mode));
    for (const ours of ['on', 'off'] as const) {
      for (const theirs of states) {
        live(
          `${mode} over IPv${v6 ? 6 : 4}, offloads ${ours} here and ${theirs} at a kernel vxlan`,
          (t) => talk(t, mesh(), v6, ours, theirs),
          requirements,
        );
      }
    }
  }
}
