/** Events of flows, for who watches: `weft conntrack events`. Nothing is written while nobody does. */
import type { ServerResponse } from 'node:http';
import {
  CHANGED,
  CLOSED,
  ENDED,
  EVENT_ADDRESSES,
  EVENT_KIND,
  EVENT_SECOND,
  EVENT_WORDS,
  EVICTED,
  EXPIRED,
  FLOW_EVENT_BYTES,
  FLUSHED,
  FlowEventReader,
  MADE,
} from '../engine/tables/flow-events.js';
import { EXTERNAL, INSIDE, IPV6_FLOW, OUT_KEY, REMOTE_END } from '../engine/tables/flows.js';
import { type FlowRow, matcher, rowOf } from './conntrack.js';
import type { Daemon } from './daemon.js';

/** How often the ring is looked at; it holds 4096 events. */
const LOOK_MS = 50;
/** Bytes that may wait for a listener who does not read. */
const MOST_WAITING = 4 << 20;

const KINDS: Readonly<Record<number, FlowEvent['event']>> = {
  [MADE]: 'new',
  [CHANGED]: 'update',
  [ENDED]: 'end',
};
const REASONS: Readonly<Record<number, FlowEvent['reason']>> = {
  [EXPIRED]: 'expired',
  [CLOSED]: 'closed',
  [EVICTED]: 'evicted',
  [FLUSHED]: 'flushed',
};

export interface FlowEvent extends FlowRow {
  readonly event: 'new' | 'update' | 'end';
  /** Why it ended: its time was over, the same after both sides had closed, it made room, or it was told to. */
  readonly reason?: 'expired' | 'closed' | 'evicted' | 'flushed';
  /** When it was read, at most 50 ms later (RFC 3339). */
  readonly time: string;
}

/** What a stream of events has, a line each: first that it has begun, then events, and how many were lost. */
export type FlowEventLine = FlowEvent | { readonly lost: number } | { readonly schemaVersion: number };

interface Listener {
  event(words: Int32Array): void;
  lost(events: number): void;
}

/** The events of a flow table, for any number of listeners. */
export class FlowWatch {
  readonly memory = new SharedArrayBuffer(FLOW_EVENT_BYTES);
  private readonly reader = new FlowEventReader(this.memory);
  private readonly listeners = new Set<Listener>();
  private timer: NodeJS.Timeout | undefined;

  /** @returns what ends it. */
  listen(listener: Listener): () => void {
    this.listeners.add(listener);
    if (this.timer === undefined) {
      this.reader.listen(true);
      this.timer = setInterval(() => this.look(), LOOK_MS).unref();
    }
    return () => {
      this.listeners.delete(listener);
      if (this.listeners.size > 0) return;
      this.reader.listen(false);
      clearInterval(this.timer);
      this.timer = undefined;
    };
  }

  private look(): void {
    const lost = this.reader.drain((words) => {
      for (const listener of this.listeners) listener.event(words);
    });
    if (lost > 0) for (const listener of this.listeners) listener.lost(lost);
  }
}

/** The row of an event; its addresses are with it, for their numbers may be others' by now. */
function eventOf(daemon: Daemon, words: Int32Array): FlowEvent {
  const entry = words.slice(0, EVENT_WORDS);
  const addresses = new Int32Array(16);
  addresses.set(entry.subarray(EVENT_ADDRESSES, EVENT_ADDRESSES + 12), 4);
  if ((entry[OUT_KEY] & IPV6_FLOW) !== 0)
    for (const [number, word] of [INSIDE, REMOTE_END, EXTERNAL].entries()) entry[word] = number + 1;
  const reason = REASONS[(words[EVENT_KIND] >>> 8) & 0xff];
  return {
    event: KINDS[words[EVENT_KIND] & 0xff] ?? 'update',
    ...(reason && { reason }),
    time: new Date().toISOString(),
    ...rowOf(daemon, entry, addresses, 0, words[EVENT_SECOND]),
  };
}

/**
 * Answers with events, a line of JSON each, until the other side goes.
 * @throws UnknownName for a network that is not there; Error when there is no flow table.
 */
export function streamEvents(daemon: Daemon, query: URLSearchParams, response: ServerResponse): void {
  const watch = daemon.flowTable()?.watch;
  if (watch === undefined) throw new Error('this node tracks no flows: it has neither uplinks nor services');
  const wanted = matcher(daemon, query);
  let lost = 0;
  const write = (line: object): void => void response.write(`${JSON.stringify(line)}\n`);
  const end = watch.listen({
    event(words) {
      if (!wanted(words, 0)) return;
      if (response.writableLength > MOST_WAITING) {
        lost++;
        return;
      }
      if (lost > 0) write({ lost });
      lost = 0;
      write(eventOf(daemon, words));
    },
    lost(events) {
      lost += events;
    },
  });
  response.on('close', end);
  response.writeHead(200, { 'content-type': 'application/x-ndjson' });
  write({ schemaVersion: 1 });
}
