/**
 * The keys with which a replay seals and opens ESP: those of a file, or one made for the run. They lie in the addon
 * while it runs, and are wiped at its end.
 */
import { randomBytes } from 'node:crypto';
import { opensItsOwn } from '../engine/chain.js';
import type { AssociationIntent } from '../engine/intent.js';
import { ESP_UDP_PORT } from '../engine/wire/esp.js';
import { type GcmLibrary, native } from '../native-bindings/index.js';
import { formatIp, parseIp } from './addresses.js';
import { algorithmSizes, SALT } from './config/derived.js';
import type { Algorithm, Encapsulation, StaticAssociation } from './config/types.js';
import { Secret } from './secret.js';

/** SPI of the association that is made for a run. */
const MADE_SPI = 0x1000;
const MADE_WINDOW = 1024;

export interface EspOptions {
  /** How what is sealed travels. Both ways are opened. */
  readonly encapsulation: Encapsulation;
  /** UDP port of encapsulated ESP. */
  readonly port: number;
  /** Undefined: esp-encrypt has a random key, and esp-decrypt behind it the same. */
  readonly associations?: readonly StaticAssociation[] | undefined;
}

export const DEFAULT_ESP: EspOptions = { encapsulation: 'udp', port: ESP_UDP_PORT };

/** Where the keys of a run are from; null when no element of its chain uses any. */
export type KeyOrigin = 'file' | 'random' | null;

/** What is wrong with keys and chain together; the message names the remedy. */
export class KeyError extends Error {}

/** An association with its key, and the VTEP at its other end: 4 or 16 bytes. */
export type KeyedAssociation = Omit<StaticAssociation, 'peer'> & { readonly vtep: Uint8Array };

export interface InstalledKeys {
  /** In the order of the list they were made from. */
  readonly associations: readonly AssociationIntent[];
  wipe(): void;
}

/** Slots of the addon that installed keys of this process have. */
const taken = new Set<number>();

/**
 * Installs keys in the addon.
 * @param library what is to use them; the preferred one when absent.
 * @throws TypeError when the library is not available.
 */
export function installKeys(list: readonly KeyedAssociation[], library?: GcmLibrary): InstalledKeys {
  const slots: number[] = [];
  const wipe = (): void => {
    for (const slot of slots.splice(0)) {
      native.gcmRemove(slot);
      taken.delete(slot);
    }
  };
  let slot = 0;
  const associations = list.map((one) => {
    while (taken.has(slot)) slot++;
    try {
      installKey(slot, one, library);
    } catch (error) {
      wipe();
      throw error;
    }
    taken.add(slot);
    slots.push(slot);
    const { direction, spi, vtep, algorithm, esn, replayWindow: window } = one;
    return { slot, direction, spi, vtep, icv: algorithmSizes(algorithm).icv, esn, window };
  });
  return { associations, wipe };
}

function installKey(slot: number, one: KeyedAssociation, library: GcmLibrary | undefined): void {
  const { key: split, icv } = algorithmSizes(one.algorithm);
  const bytes = one.key.bytes();
  try {
    const [key, salt] = [bytes.subarray(0, split), bytes.subarray(split)];
    native.gcmInstall({ slot, key, salt, icv, esn: one.esn, ...(library && { library }) });
  } finally {
    bytes.fill(0);
  }
}

/** A key with its salt that nobody knows. */
export function randomKey(algorithm: Algorithm): Secret {
  const bytes = randomBytes(algorithmSizes(algorithm).key + SALT);
  const key = new Secret(bytes.toString('hex'));
  bytes.fill(0);
  return key;
}

/**
 * What a chain between two VTEPs is to be given of the keys there are.
 * @throws KeyError when there is nothing to seal or to open with, or nothing that would use what was given.
 */
export function chooseKeys(
  through: readonly string[],
  { local, remote }: { readonly local: Uint8Array; readonly remote: Uint8Array },
  given: readonly StaticAssociation[] | undefined,
): { readonly origin: KeyOrigin; readonly list: readonly KeyedAssociation[] } {
  const seals = through.includes('esp-encrypt');
  const opens = through.includes('esp-decrypt');
  if (!seals && !opens) {
    if (given === undefined) return { origin: null, list: [] };
    throw new KeyError(
      'no element of the chain uses keys; leave them out, or add esp-encrypt or esp-decrypt',
    );
  }
  const own = opensItsOwn(through);
  if (given === undefined && opens && !own)
    throw new KeyError(
      'esp-decrypt opens what others sealed, and there are no keys; give them with --keys FILE',
    );
  const outbound = seals ? [given === undefined ? madeKey(remote) : outboundFor(given, remote)] : [];
  const mirrored = own ? outbound.map((one) => ({ ...one, direction: 'in' as const, vtep: local })) : [];
  const inbound = (opens ? (given ?? []) : [])
    .filter(({ direction, spi }) => direction === 'in' && !mirrored.some((one) => one.spi === spi))
    .map((one) => ({ ...one, vtep: parseIp(one.peer).bytes }));
  if (opens && mirrored.length + inbound.length === 0)
    throw new KeyError(
      'esp-decrypt has no association with direction in; add those of the senders to the keys',
    );
  return { origin: given === undefined ? 'random' : 'file', list: [...outbound, ...mirrored, ...inbound] };
}

function madeKey(vtep: Uint8Array): KeyedAssociation {
  const algorithm = 'aes-128-gcm-16';
  const key = randomKey(algorithm);
  // Extended numbers do not end, however often the captures are run.
  return { vtep, direction: 'out', spi: MADE_SPI, algorithm, key, esn: true, replayWindow: MADE_WINDOW };
}

/** The association that sends to the remote VTEP: its own, or the only one. */
function outboundFor(given: readonly StaticAssociation[], remote: Uint8Array): KeyedAssociation {
  const outbound = given.filter(({ direction }) => direction === 'out');
  const to = formatIp(remote);
  const found = outbound.find(({ peer }) => peer === to) ?? (outbound.length === 1 ? outbound[0] : undefined);
  if (found !== undefined) return { ...found, vtep: remote };
  throw new KeyError(
    outbound.length === 0
      ? 'esp-encrypt has no association with direction out; add one to the keys'
      : `none of ${outbound.length} outbound associations is with ${to}; name the peer of one with --remote`,
  );
}
