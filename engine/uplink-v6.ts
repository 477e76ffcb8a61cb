/**
 * The IPv6 of an uplink, wired beside its IPv4: what enters is told apart by uplink-in, what leaves by the gateway, and
 * both share the port.
 *
 *   gateway ──► nat-v6 ──► resolver-v6 ──► packet socket
 *   uplink-in ──► uplink-in-v6 ──► nat-v6 ──► gateway
 *
 * With mode host nothing is translated: gateway ──► resolver-v6, and route-in-v6 in place of nat-v6.
 */
import { createDeferred, type Deferred } from './deferred.js';
import { createResetsV6 } from './elements/balancer/resets-v6.js';
import type { Icmpv6Errors } from './elements/icmpv6-errors.js';
import { NatTables } from './elements/nat/tables.js';
import type { Nat } from './elements/nat.js';
import { createNatV6 } from './elements/nat-v6.js';
import { createResolverV6, type ResolverV6, type StationV6 } from './elements/resolver-v6.js';
import { createRouteInV6 } from './elements/route-in.js';
import { createUplinkInV6, type UplinkInV6 } from './elements/uplink-in-v6.js';
import { Batch, type Context } from './graph.js';
import type { NatIntent, UplinkIntent } from './intent.js';
import { NO_FRAME } from './memory/frames.js';
import { Publisher } from './publisher.js';
import type { Addresses6 } from './tables/addresses6.js';
import { NdCache } from './tables/arp-cache.js';
import type { Flows } from './tables/flows.js';
import type { Gateways } from './tables/gateways.js';
import type { Routes } from './tables/routes.js';
import { ADDRESS_UNREACHABLE, NO_ROUTE, PROHIBITED, UNREACHABLE_V6 } from './wire/icmpv6.js';
import { maskWords, words16 } from './wire/ipv6.js';

export interface UplinkV6 {
  /** Eight words. */
  readonly address: Uint16Array;
  readonly input: UplinkInV6;
  /** Into address translation. */
  readonly fromOutside: Batch;
  readonly fromInside: Batch;
  readonly toResolver: Batch;
  readonly resolver: ResolverV6;
  readonly deferred: Deferred;
  /** Its stages from inside to the port, first to last. */
  readonly outbound: readonly Batch[];
  readonly translation:
    | { readonly tables: NatTables; readonly nat: Nat; readonly publisher: Publisher }
    | undefined;
}

export interface UplinkV6Options {
  readonly index: number;
  readonly nat: NatIntent;
  /** There where something is translated. */
  readonly flows: Flows | null;
  readonly addresses: Addresses6 | null;
  readonly gateways: Gateways;
  readonly errors: Icmpv6Errors;
  /** Takes what was let in. */
  readonly inward: Batch;
  readonly toPort: Batch;
  /** Sending side of each local port, by port number. */
  readonly ports: readonly (Batch | null)[];
  /** Where nothing is translated. */
  readonly routes: Routes | undefined;
}

/** @returns null for an uplink without IPv6. */
export function wireV6(context: Context, intent: UplinkIntent, options: UplinkV6Options): UplinkV6 | null {
  const station = stationOf(intent);
  if (station === null) return null;
  const { index, nat: given, flows, addresses, gateways, errors, inward, toPort, routes, ports } = options;
  const name = String(index);
  const deferred = createDeferred(context, `again-v6:${name}`);
  const unreachable = (frame: number, route: boolean): void => {
    const code = route ? NO_ROUTE : ADDRESS_UNREACHABLE;
    const error = errors.make(frame, UNREACHABLE_V6, code, 0, station.address, 0);
    if (error !== NO_FRAME) deferred.push(error);
  };
  const cache = new NdCache(context.seed);
  const resolver = createResolverV6(context, name, station, cache, { port: toPort, unreachable });
  const toResolver = new Batch(resolver);
  const toUplinkIn = (nat: Batch): UplinkInV6 =>
    createUplinkInV6(context, name, station, gateways, { resolver, port: toPort, nat });
  const link = { address: station.address, toResolver, resolver, deferred };
  if (routes !== undefined) {
    const fromOutside = new Batch(createRouteInV6(context, name, routes, inward));
    return {
      ...link,
      ...{ input: toUplinkIn(fromOutside), fromOutside, fromInside: toResolver },
      ...{ outbound: [toResolver], translation: undefined },
    };
  }
  if (flows === null || addresses === null)
    throw new Error('internal: IPv6 of an uplink without a flow table');
  const toDeferred = new Batch(deferred);
  const tables = new NatTables(
    flows,
    index,
    {
      ...given,
      external: intent.v6!.address,
      random: (below) => Math.floor(Math.random() * below),
    },
    addresses,
  );
  const refused = (frame: number): void => {
    const to = ports[context.frames.ingress[frame]];
    const source = context.frames.domain[frame] * 8;
    const error = to
      ? errors.make(frame, UNREACHABLE_V6, PROHIBITED, 0, gateways.address6, source)
      : NO_FRAME;
    if (error !== NO_FRAME) to!.push(error);
  };
  const { answer: reset } = createResetsV6(context, addresses);
  const to = { outside: toResolver, inside: inward, hairpin: toDeferred, refused, reset };
  const nat = createNatV6(context, tables, addresses, to);
  const fromOutside = new Batch(nat.fromOutside);
  const fromInside = new Batch(nat.fromInside);
  return {
    ...link,
    ...{ input: toUplinkIn(fromOutside), fromOutside, fromInside },
    outbound: [fromInside, toDeferred, toResolver],
    translation: { tables, nat, publisher: new Publisher(tables) },
  };
}

function stationOf({ v6, mac }: UplinkIntent): StationV6 | null {
  if (v6 === undefined) return null;
  return {
    address: words16(v6.address),
    mask: maskWords(v6.length),
    gateway: v6.gateway === undefined ? null : words16(v6.gateway),
    mac: Uint16Array.from([0, 2, 4], (i) => mac[i] | (mac[i + 1] << 8)),
  };
}
