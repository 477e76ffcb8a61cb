/**
 * The way of encrypted domains out of the host and into it: what stands between `vxlan-encap` and the underlay, and
 * between the underlay and the bridge, when frames travel inside ESP.
 *
 *   vxlan-encap ──► segment ──► esp-encrypt ──► uplink TAP     next hop known, and ESP encapsulated in UDP
 *                                    └────────► ESP socket     otherwise
 *   uplink TAP, ESP socket ──► esp-decrypt ──► vxlan-decap ──► coalesce
 *
 * It shares nothing with the plain way: what `vxlan-decap` here lets pass was opened under an association of its
 * sender's, and what `vxlan-encap` hands to it cannot reach a plain port.
 */
import { createEspDecrypt } from './elements/esp-decrypt.js';
import { createEspEncrypt } from './elements/esp-encrypt.js';
import { createSegment } from './elements/segment.js';
import { createVxlanDecap, type VxlanDecap } from './elements/vxlan-decap.js';
import { Batch, type Context } from './graph.js';
import { ESP_PORT, type EspIntent } from './intent.js';
import type { Port } from './ports/port.js';
import { createSocketUnderlay } from './ports/underlay-socket.js';
import type { Associations } from './tables/associations.js';
import type { Domains } from './tables/domains.js';
import type { LocalVtep, Vteps } from './tables/vteps.js';

export interface SecureOptions {
  readonly associations: Associations;
  readonly domains: Domains;
  readonly vteps: Vteps;
  readonly local: LocalVtep;
  readonly esp: EspIntent;
  /** Whether other workers use the same associations. */
  readonly shared: boolean;
  /** Refuse reserved VXLAN bits. */
  readonly strict: boolean;
}

export interface SecureOut {
  readonly port: Port;
  /** First to last; `vxlan-encap` fills the first. */
  readonly stages: readonly [Batch, Batch, Batch];
}

/** @param uplink takes what is encapsulated in UDP to VTEPs whose next hop is known. */
export function createSecureOut(context: Context, options: SecureOptions, uplink: Batch | null): SecureOut {
  const { associations, vteps, local, esp, shared } = options;
  const { address } = local;
  const port = createSocketUnderlay(context, {
    id: ESP_PORT,
    fd: esp.fd,
    senders: [esp.fd],
    local: { address, port: esp.port },
    carries: 'esp',
  });
  const toSocket = new Batch(port);
  const linked = esp.port === 0 ? null : uplink;
  // Whoever sends the ESP packet on completes its UDP checksum.
  const encrypt = { v6: address.length === 16, udpPort: esp.port, shared, checksum: false };
  const toEncrypt = new Batch(createEspEncrypt(context, associations, vteps, encrypt, toSocket, linked));
  const toSegment = new Batch(createSegment(context, toEncrypt, { name: 'segment:esp' }));
  return { port, stages: [toSegment, toEncrypt, toSocket] };
}

export interface SecureIn {
  readonly decap: VxlanDecap;
  /** First to last; the first is `input`. */
  readonly stages: readonly [Batch, Batch];
}

/** @param input what the ports fill with ESP packets; it is led to where they are opened. */
export function createSecureIn(context: Context, options: SecureOptions, input: Batch, out: Batch): SecureIn {
  const { associations, domains, vteps, local, esp, shared, strict } = options;
  const decap = createVxlanDecap(
    context,
    domains,
    vteps,
    { local, addressed: true, strict, secured: true },
    out,
  );
  const toDecap = new Batch(decap);
  const decrypt = { local, addressed: true, udpPort: esp.port, shared };
  input.next = createEspDecrypt(context, associations, decrypt, toDecap);
  return { decap, stages: [input, toDecap] };
}
