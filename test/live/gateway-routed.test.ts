/** A network that is known outside by its own addresses: `masquerade: false`. */
import { ping } from '../../cli/lab.js';
import { askTcp, askUdp, FAR_ADDRESS, GatewayRig, serve, UPLINK_ADDRESS } from '../support/gateway.js';
import { live, shared } from '../support/live.js';

const rig = shared(async () => {
  const made = new GatewayRig();
  const file = made.file();
  const networks = (file.networks as Record<string, unknown>[]).map((network) =>
    network.name === 'blue' ? { ...network, masquerade: false } : network,
  );
  made.engine1.write({ ...file, networks });
  made.near.route('10.0.9.0/24', { via: UPLINK_ADDRESS });
  await made.start(made.engine1);
  return made;
});

live(
  'servers outside see the address of the container; of a network beside it, that of the uplink',
  async (t) => {
    const { c1, g1, far } = rig();
    const tcp = await serve(far, 'TCP', 7001);
    const udp = await serve(far, 'UDP', 7002);
    t.is(await askTcp(c1, FAR_ADDRESS, 7001, 'over tcp'), '10.0.9.1 over tcp');
    t.is(await askUdp(c1, FAR_ADDRESS, 7002, 'over udp'), '10.0.9.1 over udp');
    t.is(await askTcp(g1, FAR_ADDRESS, 7001, 'masqueraded'), `${UPLINK_ADDRESS} masqueraded`);
    t.true((await ping(c1, FAR_ADDRESS, { count: 3, deadlineS: 5 })).received >= 3);
    await tcp.stop();
    await udp.stop();
  },
  { tools: ['socat'] },
);

live(
  'from outside, containers are reached by what they published and not by their addresses',
  async (t) => {
    const { c1, c2, far, engine1 } = rig();
    const server = await serve(c1, 'TCP', 80);
    t.is(await askTcp(far, UPLINK_ADDRESS, 8080, 'published'), `${FAR_ADDRESS} published`);
    t.is(await askTcp(c2, UPLINK_ADDRESS, 8080, 'hairpin'), `${UPLINK_ADDRESS} hairpin`);
    const before = (await engine1.drops())['nat not-published'] ?? 0;
    t.is(await askTcp(far, '10.0.9.1', 80, 'not published'), '');
    t.is((await ping(far, '10.0.9.2', { count: 2, deadlineS: 3 })).received, 0);
    const drops = await engine1.drops();
    t.true(drops['nat not-published'] > before, JSON.stringify(drops));
    await server.stop();
  },
  { tools: ['socat'] },
);
