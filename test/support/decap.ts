import { createVxlanDecap } from '../../engine/elements/vxlan-decap.js';
import { Batch } from '../../engine/graph.js';
import { Domains, LEARN } from '../../engine/tables/domains.js';
import { Vteps } from '../../engine/tables/vteps.js';
import {
  be16,
  type Caught,
  dropped,
  ip,
  LOCAL_V4,
  LOCAL_V6,
  type Metadata,
  REMOTE_V4,
  REMOTE_V6,
  Rig,
  slowSum,
} from './frames.js';

interface DecapRigOptions {
  v6?: boolean;
  strict?: boolean;
  addressed?: boolean;
  flags?: number;
  capacity?: number;
  /** Whether the remote is configured; else its first packet makes it known. */
  configured?: boolean;
  local?: string;
}

/** Decapsulation with VNI 42 as domain 3, 0 as domain 4 and 0xffffff as domain 5. */
export function decapRig(options: DecapRigOptions = {}) {
  const {
    v6 = false,
    strict = false,
    addressed = true,
    flags = LEARN,
    capacity = 8,
    configured = true,
  } = options;
  const rig = new Rig();
  const domains = new Domains();
  const vteps = new Vteps(capacity);
  const local = { address: ip(options.local ?? (v6 ? LOCAL_V6 : LOCAL_V4)), port: 4789, ttl: 64 };
  for (const [domain, vni] of [
    [3, 42],
    [4, 0],
    [5, 0xffffff],
  ])
    domains.set(domain, { vni, flags, ageing: 300 });
  if (configured) domains.setVteps(3, [vteps.add(ip(v6 ? REMOTE_V6 : REMOTE_V4), true, local, 0)]);
  const sink = rig.sink();
  const out = new Batch(sink);
  const decap = createVxlanDecap(rig.context, domains, vteps, { local, addressed, strict }, out);
  return {
    rig,
    domains,
    vteps,
    local,
    decap,
    sink,
    flush: () => out.flush(),
    send(packet: Uint8Array, metadata: Metadata = {}): void {
      rig.feed(decap, rig.put(packet, { alignment: 6, ...metadata }));
      out.flush();
    },
    inner(packet: Uint8Array, metadata: Metadata = {}): Caught {
      this.send(packet, metadata);
      return sink.one();
    },
    /** The reason for which a packet is dropped; `passed` when it is not. */
    verdict(packet: Uint8Array, metadata: Metadata = {}): string {
      const before = dropped(decap.drops);
      this.send(packet, metadata);
      const passed = sink.take().length;
      const after = dropped(decap.drops);
      const reasons = Object.keys(after).filter((name) => after[name] !== before[name]);
      if (passed + reasons.length !== 1) throw new Error(`${passed} passed, dropped for ${reasons}`);
      return reasons[0] ?? 'passed';
    },
    count: (name: string) => rig.counter('vxlan-decap', name),
    drops: () => dropped(decap.drops),
  };
}

export const edit = (bytes: Uint8Array, at: number, ...values: number[]): Uint8Array => {
  const copy = Uint8Array.from(bytes);
  copy.set(values, at);
  return copy;
};

/** Makes the IPv4 header checksum right again after an edit. */
export const mend = (packet: Uint8Array): Uint8Array => {
  const header = edit(packet, 24, 0, 0).subarray(14, 14 + (packet[14] & 15) * 4);
  return edit(packet, 24, ...be16(~slowSum(header) & 0xffff));
};
