/**
 * The end of flows whose backend is gone, or that were silent for too long: of TCP both ends are made to reset
 * themselves, so that nobody waits for what will not come.
 */
import type { Batch, Context } from '../../graph.js';
import { BALANCER_PORT } from '../../intent.js';
import { NO_FRAME } from '../../memory/frames.js';
import {
  EXTERNAL,
  FLOW_SHIFT,
  type Flows,
  IN_PORTS,
  INSIDE,
  OUT_KEY,
  OUT_PORTS,
  REMOTE_END,
  STATE,
} from '../../tables/flows.js';
import { MAPPED_IPV4, type Neighbours, NO_NEIGHBOUR } from '../../tables/neighbours.js';
import { VIRTUAL_MAC_LE } from '../../tables/services.js';
import type { Chooser } from './chooser.js';
import type { Resets } from './resets.js';

/** Entries looked at in one call for flows of backends that are gone, about a millisecond; and flows ended in it. */
const SWEEP_ENTRIES = 1 << 18;
const SWEEP_FLOWS = 1024;

export interface Endings {
  /** Has both ends of a TCP connection reset themselves: each answers, and nobody knows what it answers to. */
  reset(flow: number): void;
  /** Ends the flows of a backend, some at each call of `some`. */
  begin(backend: number): void;
  some(): void;
}

/** @param out takes frames of the balancer's own, to the bridge. */
export function createEndings(
  context: Context,
  flows: Flows,
  chooser: Chooser,
  resets: Resets,
  neighbours: Neighbours,
  out: Batch,
): Endings {
  const { frames } = context;
  const { u16, off, domain, ingress } = frames;
  const { words } = flows;
  /** Backends whose flows must end, and the flow that is looked at next for them; 0 when there are none. */
  const ending = new Set<number>();
  let sweep = 0;

  function reset(flow: number): void {
    const at = flow << FLOW_SHIFT;
    const client = words[at + REMOTE_END];
    const clientPort = words[at + IN_PORTS] >>> 16;
    ask(at, words[at + EXTERNAL], words[at + IN_PORTS] & 0xffff, client, clientPort);
    ask(at, client, clientPort, words[at + INSIDE], words[at + OUT_PORTS] & 0xffff);
  }

  function ask(at: number, source: number, sourcePort: number, destination: number, port: number): void {
    const dom = (words[at + OUT_KEY] >>> 16) - 1;
    const known = neighbours.lookup(dom, 0, 0, MAPPED_IPV4, destination);
    const frame = known === NO_NEIGHBOUR ? NO_FRAME : resets.probe(source, sourcePort, destination, port);
    if (frame === NO_FRAME) return;
    domain[frame] = dom;
    ingress[frame] = BALANCER_PORT;
    const w = off[frame] >>> 1;
    for (let i = 0; i < 3; i++) u16[w + i] = neighbours.macWord(known, i);
    u16[w + 3] = VIRTUAL_MAC_LE;
    u16[w + 4] = words[at + EXTERNAL];
    u16[w + 5] = words[at + EXTERNAL] >>> 16;
    out.push(frame);
  }

  function some(): void {
    if (sweep === 0) return;
    let ended = 0;
    const last = Math.min(sweep + SWEEP_ENTRIES, flows.capacity + 1);
    for (; sweep < last && ended < SWEEP_FLOWS; sweep++) {
      if (!chooser.isOurs(sweep) || !ending.has((words[(sweep << FLOW_SHIFT) + STATE] >>> 8) - 1)) continue;
      if (chooser.isTcp(sweep)) reset(sweep);
      flows.end(sweep);
      ended++;
    }
    if (sweep <= flows.capacity) return;
    sweep = 0;
    ending.clear();
  }

  return {
    reset,
    some,
    begin(backend) {
      ending.add(backend);
      sweep = 1;
    },
  };
}
