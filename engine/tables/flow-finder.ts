/** The search for the flow of a packet: what is hot of the flow table, over captured arrays. */
import {
  EXTERNAL,
  FLOW_SHIFT,
  IN_DOMAIN,
  IN_PORTS,
  NO_FLOW,
  OUT,
  OUT_KEY,
  OUT_PORTS,
  REMOTE_END,
} from './flows.js';

/** What of OUT_KEY a packet from outside has. */
const OUTER_KEY = 0x7fff;

/** The key of a flow's packets from outside. */
export function outerKey(key: number): number {
  return (key & IN_DOMAIN) === 0 ? key & OUTER_KEY : key;
}

/** @returns flow and direction (flow * 2 + direction) of a key, or NO_FLOW. @param hash of `flowKeyHash`. */
export type FlowFinder = (hash: number, own: number, remote: number, ports: number, key: number) => number;

export function createFinder(words: Int32Array, index: Int32Array, refMask: number): FlowFinder {
  const indexMask = index.length - 1;
  return function find(hash, own, remote, ports, key) {
    const tag = hash & ~refMask;
    for (let i = hash & indexMask; ; i = (i + 1) & indexMask) {
      const word = index[i];
      if (word === 0) return NO_FLOW;
      if ((word & ~refMask) !== tag) continue;
      const ref = word & refMask;
      const at = (ref >>> 1) << FLOW_SHIFT;
      if (words[at + REMOTE_END] !== remote || words[at + (ref & 1) * EXTERNAL] !== own) continue;
      if ((ref & 1) === OUT) {
        if (words[at + OUT_PORTS] === ports && words[at + OUT_KEY] === key) return ref;
      } else if (words[at + IN_PORTS] === ports && outerKey(words[at + OUT_KEY]) === key) return ref;
    }
  };
}
