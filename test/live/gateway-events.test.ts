/** `weft conntrack events`: what happens to flows, while it happens. */
import { waitFor } from '../../cli/lab.js';
import type { FlowEvent } from '../../control/api.js';
import { askUdp, FAR_ADDRESS, GatewayRig, serve, UPLINK_ADDRESS } from '../support/gateway.js';
import { live, MAIN, shared } from '../support/live.js';

const rig = shared(() => GatewayRig.up({ file: { nat: { timeouts: { closing: 10 } } } }));

function watch(...options: string[]) {
  const { host, engine1 } = rig();
  const args = [MAIN, 'conntrack', 'events', '--socket', engine1.socket, ...options];
  return host.start(process.execPath, args);
}

const eventsOf = ({ stdout }: { readonly stdout: string }): FlowEvent[] =>
  stdout
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as FlowEvent);

live(
  'a connection and a datagram: made, answered, closed, and ended for a reason',
  async (t) => {
    const { c1, far, engine1 } = rig();
    const all = watch('--json');
    const tcp = watch('--protocol', 'tcp');
    for (const one of [all, tcp]) await one.output(/^listening$/m, { stream: 'stderr' });
    const server = await serve(far, 'TCP', 7020);
    const { stdout } = await c1.exec('socat', ['-', `TCP:${FAR_ADDRESS}:7020`], { input: 'a\n' });
    t.is(stdout, `${UPLINK_ADDRESS} a\n`);
    const datagrams = await serve(far, 'UDP', 7021);
    await askUdp(c1, FAR_ADDRESS, 7021, 'b');
    const of = (protocol: string): string[] =>
      eventsOf(all)
        .filter((event) => event.protocol === protocol)
        .map(({ event, state, reason }) => [event, state, ...(reason ? [reason] : [])].join(' '));
    await waitFor(() => of('udp').length >= 2 && of('tcp').length >= 4, { what: 'events' });
    t.deepEqual(of('udp'), ['new unreplied', 'update active']);
    t.deepEqual(of('tcp').slice(0, 2), ['new syn-sent', 'update established']);
    t.is(of('tcp').at(-1), 'update closing');
    await engine1.cli('conntrack', 'flush', '--network', 'green');
    t.is(of('udp').length, 2, 'flows of another network stay');
    // As `closing` says, and a second for the wheel.
    await waitFor(() => of('tcp').at(-1) === 'end closing closed', { what: 'the end', timeoutMs: 20_000 });
    await engine1.cli('conntrack', 'flush');
    await waitFor(() => of('udp').length === 3, { what: 'the end of the datagrams’ flow' });
    t.is(of('udp')[2], 'end active flushed');

    const [first] = eventsOf(all);
    t.like(first, { network: 'blue', uplink: 'out', remote: `${FAR_ADDRESS}:7020`, expires: 240 });
    t.true(Date.now() - Date.parse(first.time) < 60_000);
    const last = eventsOf(all).find(({ event, protocol }) => event === 'end' && protocol === 'tcp')!;
    t.true(last.packetsOut >= 4 && last.packetsIn >= 3 && last.bytes > 100);
    const lines = tcp.stdout.trim().split('\n');
    t.regex(lines[0], / new tcp syn-sent blue 10\.0\.9\.1:\d+ 192\.168\.60\.10:\d+ 203\.0\.113\.2:7020$/);
    t.regex(lines.at(-1)!, / end tcp closing blue .* \d+ out, \d+ in, \d+ bytes, closed$/);
    t.false(tcp.stdout.includes('udp'));
    for (const one of [all, tcp, server, datagrams]) await one.stop('SIGKILL');
  },
  { tools: ['socat'] },
);

live(
  'flows of a service are told of and listed as well, each once',
  async (t) => {
    const { c1, c2, engine1 } = rig();
    const file = rig().file();
    const backends = [{ address: '10.0.9.1' }];
    const web = {
      name: 'web',
      network: 'blue',
      vip: '10.0.9.100',
      backends,
      affinity: { by: 'client', timeout: '60s' },
    };
    await engine1.stop();
    engine1.write({ ...file, services: [web] });
    await engine1.start();
    const watching = watch('--json', '--protocol', 'tcp');
    await watching.output(/^listening$/m, { stream: 'stderr' });
    const server = await serve(c1, 'TCP', 7022);
    const { stdout } = await c2.exec('socat', ['-', 'TCP:10.0.9.100:7022'], { input: 'a\n' });
    t.is(stdout, '10.0.9.2 a\n');
    await waitFor(() => eventsOf(watching).at(-1)?.state === 'closing', { what: 'events' });
    const seen = eventsOf(watching);
    t.deepEqual(
      seen.slice(0, 1).map(({ event, state, inside, outside }) => `${event} ${state} ${inside} ${outside}`),
      ['new syn-received 10.0.9.1:7022 10.0.9.100:7022'],
    );
    t.true(seen.some(({ event, state }) => event === 'update' && state === 'established'));
    const { stdout: listed } = await engine1.cli('conntrack', 'ls', '--network', 'blue');
    t.is(listed.trim().split('\n').length, 2, listed);
    t.regex(listed, /tcp +closing +blue +10\.0\.9\.1:7022 +10\.0\.9\.100:7022 +10\.0\.9\.2:/);
    await watching.stop('SIGKILL');
    await server.stop();
    await engine1.stop();
    engine1.write(file);
    await engine1.start();
  },
  { tools: ['socat'] },
);

live('who asks for what is not there is told; a daemon that ends ends the stream', async (t) => {
  const { engine1 } = rig();
  t.is((await engine1.cli('conntrack', 'events', '--network', 'red')).code, 4);
  for (const end of [() => engine1.stop(), () => engine1.kill()]) {
    const watching = watch();
    await watching.output(/^listening$/m, { stream: 'stderr' });
    await end();
    const { code, stderr } = await watching.finish();
    t.is(code, 3, stderr);
    t.regex(stderr, /the daemon has ended/);
    await engine1.start();
  }
});
