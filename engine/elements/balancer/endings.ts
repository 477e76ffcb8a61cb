/**
 * The end of flows whose backend is gone, or that were silent for too long: of TCP both ends are made to reset
 * themselves, so that nobody waits for what will not come.
 *
 * The ends of a connection from outside are asked as each sees the other: the client past address translation, the
 * backend as by the client, on whichever node it is. What they answer is reset by this node, though it might begin a
 * connection: what the client says by its NAT, what the backend says by the mesh.
 */
import type { Batch, Context } from '../../graph.js';
import { BALANCER_PORT } from '../../intent.js';
import { NO_FRAME } from '../../memory/frames.js';
import type { Addresses6 } from '../../tables/addresses6.js';
import { NO_SERVICE } from '../../tables/backends.js';
import { FIN_BOTH, FIN_OUT } from '../../tables/connection.js';
import { outerKey } from '../../tables/flow-finder.js';
import {
  BALANCER_OWNER,
  EXTERNAL,
  FLOW_SHIFT,
  type Flows,
  flowKeyHash,
  IN_PORTS,
  INSIDE,
  IPV6_FLOW,
  OUT_KEY,
  OUT_PORTS,
  OWNER_SHIFT,
  OWNERS,
  REMOTE_END,
  STATE,
  STATE_MASK,
} from '../../tables/flows.js';
import { MAPPED_IPV4, type Neighbours, NO_NEIGHBOUR } from '../../tables/neighbours.js';
import { type Services, VIRTUAL_MAC_LE } from '../../tables/services.js';
import { PROTOCOL_TCP } from '../../wire/ip.js';
import type { Probe } from './resets.js';

/** Entries looked at in one call for flows of backends that are gone, and flows ended in it: well below a millisecond. */
const SWEEP_ENTRIES = 1 << 16;
const SWEEP_FLOWS = 256;
/**
 * Who only waits would wait for ever when what it is asked, or its answer, is lost: both ends of a connection from
 * outside are asked again after so many seconds each time, if not too many are. Who was reset answers with a reset,
 * which nobody misses.
 */
const AGAIN_SECONDS = [1, 3];
const MOST_AGAIN = 4096;

/** What was known of a connection from outside, as in its flow, and the hashes of its keys. */
interface Question {
  readonly owner: number;
  readonly domain: number;
  readonly external: number;
  readonly inPorts: number;
  readonly client: number;
  readonly backend: number;
  readonly outPorts: number;
  readonly hashes: readonly number[];
}

export interface Endings {
  /** Has both ends of a TCP connection reset themselves: each answers, and nobody knows what it answers to. */
  reset(flow: number): void;
  /** A flow that a NAT owns was silent too long: the same, when it is an established connection. */
  expired(flow: number): void;
  /** Ends the flows of a backend, some at each call of `sweep`, which says whether there may be more. */
  begin(backend: number): void;
  sweep(): boolean;
  /** Asks those again whose time has come. */
  askAgain(): void;
}

export interface EndingOptions {
  readonly flows: Flows;
  readonly services: Services;
  /** Makes the segments, of the flows' family. */
  readonly probe: Probe;
  readonly neighbours: Neighbours;
  /** Takes what leaves by the uplink of the NAT that owns a flow, translated already. */
  readonly outside: (owner: number) => Batch;
  /** Takes what is for a backend as if it was let in from outside. */
  readonly inside: Batch;
  /** Numbers of IPv6 addresses, when the flows are of IPv6. */
  readonly addresses?: Addresses6;
}

/** @param out takes frames of the balancer's own, to the bridge. */
export function createEndings(
  context: Context,
  { flows, services, probe, neighbours, outside, inside, addresses }: EndingOptions,
  out: Batch,
): Endings {
  const { frames } = context;
  const { u16, off, domain, ingress } = frames;
  const { words } = flows;
  const { service, up } = services.backends;
  /** Backends whose flows must end, and the flow that is looked at next for them; 0 when there are none. */
  const ending = new Set<number>();
  let next = 0;
  /** Those to be asked again after the first, the second … wait, in the order of their time. */
  const again: (Question & { readonly due: number })[][] = AGAIN_SECONDS.map(() => []);
  const family = addresses === undefined ? 0 : IPV6_FLOW;

  function reset(flow: number): void {
    const at = flow << FLOW_SHIFT;
    const client = words[at + REMOTE_END];
    const clientPort = words[at + IN_PORTS] >>> 16;
    const backend = words[at + INSIDE];
    ask(at, client, words[at + EXTERNAL], words[at + IN_PORTS] & 0xffff, client, clientPort);
    // A caller that is its own backend is asked by each of its two flows.
    if (backend === client) return;
    const keeps = services.keeps[(words[at + STATE] >>> 8) - 1] === 1;
    const called = keeps ? words[at + EXTERNAL] : backend;
    ask(at, backend, client, clientPort, called, words[at + OUT_PORTS] & 0xffff);
  }

  /** @param host whose MAC the frame gets. */
  function ask(
    at: number,
    host: number,
    source: number,
    sourcePort: number,
    destination: number,
    port: number,
  ): void {
    const dom = (words[at + OUT_KEY] >>> 16) - 1;
    const known = lookup(dom, host);
    const frame = known === NO_NEIGHBOUR ? NO_FRAME : probe(source, sourcePort, destination, port);
    if (frame === NO_FRAME) return;
    domain[frame] = dom;
    ingress[frame] = BALANCER_PORT;
    const w = off[frame] >>> 1;
    for (let i = 0; i < 3; i++) u16[w + i] = neighbours.macWord(known, i);
    // The last four bytes of the virtual address.
    const external = words[at + EXTERNAL];
    const last = addresses === undefined ? external : addresses.words[external * 4 + 3];
    u16[w + 3] = VIRTUAL_MAC_LE;
    u16[w + 4] = last;
    u16[w + 5] = last >>> 16;
    out.push(frame);
  }

  function lookup(dom: number, host: number): number {
    if (addresses === undefined) return neighbours.lookup(dom, 0, 0, MAPPED_IPV4, host);
    const [a, b, c, d] = addresses.words.subarray(host * 4, host * 4 + 4);
    return neighbours.lookup(dom, a, b, c, d);
  }

  /** Asks both ends of a connection from outside, and goes on asking. */
  function askEnds(at: number): void {
    const key = words[at + OUT_KEY];
    const [external, inPorts] = [words[at + EXTERNAL], words[at + IN_PORTS]];
    const [backend, outPorts] = [words[at + INSIDE], words[at + OUT_PORTS]];
    const client = words[at + REMOTE_END];
    const hashes = [
      flowKeyHash(flows.seed, external, client, inPorts, outerKey(key)),
      flowKeyHash(flows.seed, backend, client, outPorts, key),
    ];
    const shared = { owner: ownerOf(key), domain: (key >>> 16) - 1, client, hashes };
    const one = { ...shared, external, inPorts, backend, outPorts };
    addresses?.keep(client);
    addresses?.keep(backend);
    for (const hash of hashes) flows.ended.add(hash);
    askBoth(one);
    wait(one, 0);
  }

  function askBoth({ owner, domain: dom, external, inPorts, client, backend, outPorts }: Question): void {
    // The client knows the service, and nobody translates any more.
    const toClient = probe(external, inPorts & 0xffff, client, inPorts >>> 16);
    if (toClient !== NO_FRAME) {
      ingress[toClient] = BALANCER_PORT;
      outside(owner).push(toClient);
    }
    if (lookup(dom, backend) === NO_NEIGHBOUR) return;
    const toBackend = probe(client, outPorts >>> 16, backend, outPorts & 0xffff);
    if (toBackend === NO_FRAME) return;
    domain[toBackend] = dom;
    inside.push(toBackend);
  }

  function wait(one: Question, time: number): void {
    if (time < again.length && again[time].length < MOST_AGAIN) {
      again[time].push({ ...one, due: context.seconds + AGAIN_SECONDS[time] });
      return;
    }
    for (const hash of one.hashes) flows.ended.delete(hash);
    addresses?.release(one.client);
    addresses?.release(one.backend);
  }

  function askAgain(): void {
    again.forEach((list, time) => {
      const due = list.findIndex((one) => one.due > context.seconds);
      for (const one of list.splice(0, due < 0 ? list.length : due)) {
        askBoth(one);
        wait(one, time + 1);
      }
    });
  }

  function expired(flow: number): void {
    const at = flow << FLOW_SHIFT;
    const key = words[at + OUT_KEY];
    if ((key & 0xff) !== PROTOCOL_TCP || (words[at + STATE] & STATE_MASK) < FIN_OUT) return;
    askEnds(at);
  }

  function ownerOf(key: number): number {
    return (key >>> OWNER_SHIFT) & (OWNERS - 1);
  }

  function sweep(): boolean {
    if (next === 0) return false;
    let ended = 0;
    const last = Math.min(next + SWEEP_ENTRIES, flows.capacity + 1);
    for (; next < last && ended < SWEEP_FLOWS; next++) ended += Number(endIfGone(next));
    if (next <= flows.capacity) return true;
    next = 0;
    ending.clear();
    return false;
  }

  /** Whether a backend lives again before all that it had has ended: it has new flows among them. */
  function isBack(backend: number): boolean {
    return service[backend] !== NO_SERVICE && up[backend] === 1;
  }

  function endIfGone(flow: number): boolean {
    const at = flow << FLOW_SHIFT;
    const key = words[at + OUT_KEY];
    const owner = ownerOf(key);
    if ((key & IPV6_FLOW) !== family) return false;
    const backend = (words[at + STATE] >>> 8) - 1;
    if (key === 0 || owner > BALANCER_OWNER || !ending.has(backend) || isBack(backend)) return false;
    if ((key & 0xff) === PROTOCOL_TCP && (words[at + STATE] & STATE_MASK) !== FIN_BOTH) {
      if (owner === BALANCER_OWNER) reset(flow);
      else askEnds(at);
    }
    flows.end(flow);
    return true;
  }

  return {
    reset,
    expired,
    sweep,
    askAgain,
    begin(backend) {
      ending.add(backend);
      next = 1;
    },
  };
}
