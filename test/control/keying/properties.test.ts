import test from 'ava';
import fc from 'fast-check';
import { CALM, Network, type Node, ringOf, type Weather } from './network.js';

const weather: fc.Arbitrary<Weather> = fc.record({
  loss: fc.double({ min: 0, max: 0.6, noNaN: true }),
  twice: fc.double({ min: 0, max: 0.5, noNaN: true }),
  delay: fc.constantFrom<[number, number]>([0, 1], [0, 30], [0, 300], [200, 1500]),
  install: fc.constantFrom<[number, number]>([0, 0], [0, 20], [0, 200]),
  failure: fc.constantFrom(0, 0, 0.2),
});

const which = fc.nat(4);
/** What happens to nodes, by number modulo how many there are. `ms` go by after each. */
const happening = fc.record({
  what: fc.oneof(
    fc.record({ kind: fc.constant('rotate' as const), node: which }),
    fc.record({ kind: fc.constant('restart' as const), node: which, after: fc.constantFrom(0, 10, 3000) }),
    fc.record({ kind: fc.constant('forget' as const), node: which, other: which }),
    fc.record({ kind: fc.constant('ring' as const), node: which }),
    fc.record({ kind: fc.constant('cut' as const), node: which, other: which, oneWay: fc.boolean() }),
    fc.record({ kind: fc.constant('weather' as const), weather }),
  ),
  ms: fc.constantFrom(0, 1, 5, 40, 200, 2000, 20_000),
});
type What = typeof happening extends fc.Arbitrary<{ what: infer W }> ? W : never;

/** Nodes that know one another, each with its own place in the sequence of rings, at most one step from the others'. */
class Run {
  readonly network: Network;
  readonly nodes: Node[];
  readonly #cut = new Set<string>();
  readonly #ring: number[];

  constructor(
    count: number,
    seed: number,
    /** The node whose chance is the same at each start, as that of a clone. */
    readonly clone: number | undefined,
  ) {
    this.network = new Network(seed);
    this.nodes = Array.from({ length: count }, (_, k) => this.network.node(k + 1, { keys: ringOf(1, 2, 3) }));
    this.#ring = this.nodes.map(() => 0);
    this.network.passes = ({ from, to }) => !this.#cut.has(`${from} ${to}`);
    for (const node of this.nodes) this.start(node);
  }

  start(node: Node): void {
    const at = this.nodes.indexOf(node);
    const others = this.nodes.filter((other) => other !== node);
    const exchange = at === this.clone ? node.start([], 'clone') : node.start([]);
    exchange.setRing(this.ringOf(at));
    exchange.setPeers(others.map(({ address }) => address));
  }

  ringOf(at: number): ReturnType<typeof ringOf> {
    const first = this.#ring[at] + 1;
    return ringOf(first, first + 1, first + 2);
  }

  async happen(what: What): Promise<void> {
    const { network, nodes } = this;
    if (what.kind === 'weather') {
      network.weather = what.weather;
      return;
    }
    const at = what.node % nodes.length;
    const node = nodes[at];
    if (what.kind === 'rotate') {
      node.exchange!.rotate(undefined, 100).catch(() => undefined);
    } else if (what.kind === 'restart') {
      node.crash();
      // What is still on its way to a clone is what it asked for, as far as it can tell.
      await network.run(at === this.clone ? 3000 : what.after);
      this.start(node);
    } else if (what.kind === 'ring') {
      // Nobody is a step ahead of who is a step behind.
      if (this.#ring.some((step) => step < this.#ring[at])) return;
      this.#ring[at]++;
      node.exchange!.setRing(this.ringOf(at));
    } else {
      const other = nodes[what.other % nodes.length];
      if (other === node) return;
      if (what.kind === 'cut') {
        this.#cut.add(`${node.address} ${other.address}`);
        if (!what.oneWay) this.#cut.add(`${other.address} ${node.address}`);
        return;
      }
      const all = nodes.filter((one) => one !== node).map(({ address }) => address);
      node.exchange!.setPeers(all.filter((address) => address !== other.address));
      await network.run(50);
      node.exchange!.setPeers(all);
    }
  }

  heal(): void {
    this.#cut.clear();
    this.network.weather = CALM;
  }
}

const scenario = fc.record({
  count: fc.integer({ min: 2, max: 5 }),
  seed: fc.nat(),
  weather,
  happenings: fc.array(happening, { maxLength: 15 }),
});

function repeated(values: readonly string[]): string[] {
  return values.filter((value, at) => values.indexOf(value) !== at);
}

test('whatever happened, all pairs agree once the network works, with one generation each after the grace period', async (t) => {
  await fc.assert(
    fc.asyncProperty(scenario, async ({ count, seed, weather: first, happenings }) => {
      const run = new Run(count, seed, undefined);
      const { network, nodes } = run;
      network.weather = first;
      for (const { what, ms } of happenings) {
        await run.happen(what);
        await network.run(ms);
        for (const { inbound } of nodes)
          if (inbound.size > 8 * (count - 1)) throw new Error('generations grow');
      }
      run.heal();
      await network.run(20_000);
      const wrong = network.disagreements();
      if (wrong.length > 0) throw new Error(wrong.join('\n'));
      await network.run(60_000);
      const late = network.disagreements();
      if (late.length > 0) throw new Error(`after the grace period: ${late.join('\n')}`);
      for (const node of nodes) {
        if (node.inbound.size !== count - 1) throw new Error(`${node.inbound.size} inbound associations`);
        if (node.exchange!.peers.some(({ exchanging }) => exchanging)) throw new Error('it goes on asking');
      }
      for (const direction of ['in', 'out']) {
        const keys = network.installed.filter((one) => one.direction === direction).map(({ key }) => key);
        if (repeated(keys).length > 0) throw new Error(`a key was installed ${direction} twice`);
      }
    }),
    { numRuns: 60 },
  );
  t.pass();
});

test('whatever happened, a clone sends under no key twice, and messages recorded meanwhile install nothing later', async (t) => {
  let replayed = 0;
  await fc.assert(
    fc.asyncProperty(scenario, fc.nat(4), async ({ count, seed, weather: first, happenings }, clone) => {
      const run = new Run(count, seed, clone % count);
      const { network, nodes } = run;
      network.weather = first;
      for (const { what, ms } of happenings) {
        await run.happen(what);
        await network.run(ms);
      }
      run.heal();
      await network.run(20_000);
      const sending = network.installed.filter(({ direction }) => direction === 'out').map(({ key }) => key);
      if (repeated(sending).length > 0) throw new Error('a key was used to send twice');
      for (const node of nodes) {
        node.crash();
        await network.run(10);
      }
      for (const node of nodes)
        node.start(
          nodes.filter((other) => other !== node),
          `fresh ${node.address} ${seed}`,
        );
      const recorded = [...network.sent];
      await network.run(5000);
      const before = network.installed.length;
      for (const sent of recorded) {
        network.deliver(sent);
        await network.run(0.2);
      }
      await network.run(100);
      replayed += recorded.length;
      if (network.installed.length !== before) throw new Error('a recorded message made somebody install');
    }),
    { numRuns: 30 },
  );
  t.true(replayed > 300, `${replayed} were replayed`);
});
