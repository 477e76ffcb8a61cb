/** The keys `encryption` and `security_associations`: read, checked for each other and for the networks, and built. */
import { MAX_VTEPS } from '../../engine/intent.js';
import type { Secret } from '../secret.js';
import { algorithmSizes, SALT } from './derived.js';
import { isMapping } from './document.js';
import type { Findings, Path } from './problems.js';
import { type Draft, readLeaves, readList } from './read.js';
import {
  checkVtep,
  type EndpointDraft,
  type NetworkDraft,
  type Sealing,
  type UnderlayDraft,
  Unique,
} from './relations.js';
import { associationSchema, encryptionSchema, MOST_KEYS, ringKeySchema, rotateSchema } from './schema.js';
import type { Encryption, StaticAssociation } from './types.js';

/** Two for each VTEP. */
const MOST_ASSOCIATIONS = 2 * MAX_VTEPS;
/** Peers that one problem names. */
const MOST_NAMED = 5;

interface Part<F> {
  readonly path: Path;
  readonly fields: F;
}

/** What both structures hold; `undefined` fields were reported. */
export interface EncryptionDraft {
  readonly fields: Draft<typeof encryptionSchema>;
  readonly rotate: Draft<typeof rotateSchema>;
  readonly keys: readonly Part<Draft<typeof ringKeySchema>>[];
  readonly associations: readonly Part<Draft<typeof associationSchema>>[];
  /** Where secrets stand: a file that has any is for its owner alone. */
  readonly secrets: readonly Path[];
  /** Whether the file speaks of encryption at all. */
  readonly written: boolean;
}

const KEYS: Path = ['encryption', 'keys'];
const ASSOCIATIONS: Path = ['security_associations'];

/** Reads both structures; absent ones give defaults. */
export function readEncryption(root: Readonly<Record<string, unknown>>, findings: Findings): EncryptionDraft {
  const { encryption: raw = {}, security_associations: list } = root;
  const fields = readLeaves(encryptionSchema, raw, ['encryption'], findings);
  const { keys, rotate = {} } = isMapping(raw) ? raw : {};
  const read =
    <S extends typeof ringKeySchema | typeof associationSchema>(schema: S) =>
    (item: unknown, path: Path) => ({ path, fields: readLeaves(schema, item, path, findings) });
  const holds = (value: unknown) => value !== undefined && !(Array.isArray(value) && value.length === 0);
  const draft = {
    fields,
    rotate: readLeaves(rotateSchema, rotate, ['encryption', 'rotate'], findings),
    keys: readList(keys, KEYS, findings, read(ringKeySchema)),
    associations: readList(list, ASSOCIATIONS, findings, read(associationSchema)),
    secrets: [...(holds(keys) ? [KEYS] : []), ...(holds(list) ? [ASSOCIATIONS] : [])],
  };
  return { ...draft, written: root['encryption'] !== undefined || draft.secrets.length > 0 };
}

/** What the rest of the file is checked with. */
export function sealingOf({ fields, associations }: EncryptionDraft): Sealing {
  return {
    encapsulation: fields.encapsulation ?? 'udp',
    peers: associations.flatMap((one) => one.fields.peer?.text ?? []),
  };
}

/** A file with secrets that others may read or write. @param mode of the file, as `stat` gives it. */
export function checkMode(draft: EncryptionDraft, file: string, mode: number, findings: Findings): void {
  const [place] = draft.secrets;
  if (place === undefined || (mode & 0o077) === 0) return;
  const shown = (mode & 0o7777).toString(8).padStart(4, '0');
  findings.add(
    place,
    `the file holds secrets, and its mode ${shown} opens it to others than its owner`,
    `chmod 600 ${file}`,
    'key',
  );
}

/** Checks what was read against itself and the rest of the file; absent fields were reported already. */
export function checkEncryption(
  draft: EncryptionDraft,
  underlay: UnderlayDraft,
  networks: readonly NetworkDraft[],
  endpoints: readonly EndpointDraft[],
  findings: Findings,
): void {
  checkKeys(draft, findings);
  if (isUsed(draft, networks)) checkPorts(draft, underlay, findings);
  checkAssociations(draft, underlay, findings);
  for (const network of networks) {
    if (network.fields.encrypted) checkCovered(network, underlay, endpoints, draft, findings);
  }
}

function isUsed(draft: EncryptionDraft, networks: readonly NetworkDraft[]): boolean {
  return draft.written || networks.some(({ fields }) => fields.encrypted);
}

const hex = (secret: Secret) => Buffer.from(secret.bytes()).toString('hex');

function checkKeys({ keys }: EncryptionDraft, findings: Findings): void {
  if (keys.length > MOST_KEYS) {
    findings.add(
      KEYS,
      `${keys.length} keys are more than the key ring holds`,
      `keep ${MOST_KEYS}: when a new one comes, the oldest goes`,
    );
  }
  const ids = new Unique(findings);
  const secrets = new Unique(findings);
  for (const { path, fields } of keys) {
    const { id, secret } = fields;
    if (id !== undefined) ids.add(String(id), [...path, 'id'], `key id ${id}`, 'give each key its own id');
    if (secret === undefined) continue;
    secrets.add(hex(secret), [...path, 'secret'], 'this secret', 'make another with "openssl rand -hex 32"');
  }
}

/** Sockets that this host opens on one address must not want the same port. */
function checkPorts({ fields, secrets }: EncryptionDraft, underlay: UnderlayDraft, findings: Findings): void {
  const ports = new Map<number | undefined, string>([[underlay.port, 'underlay.port']]);
  const used = [
    ...(fields.encapsulation === 'udp' ? (['port'] as const) : []),
    ...(secrets.includes(KEYS) ? (['exchange_port'] as const) : []),
  ];
  for (const key of used) {
    const port = fields[key];
    if (port === undefined) continue;
    const other = ports.get(port);
    if (other === undefined) ports.set(port, `encryption.${key}`);
    else {
      findings.add(
        ['encryption', key],
        `UDP port ${port} of encryption.${key} is ${other} already`,
        `write another ${key}, the same on every host`,
      );
    }
  }
}

/** Checks the static associations alone. */
export function checkAssociations(
  { associations }: EncryptionDraft,
  underlay: UnderlayDraft,
  findings: Findings,
): void {
  if (associations.length > MOST_ASSOCIATIONS) {
    findings.add(
      ASSOCIATIONS,
      `${associations.length} associations are more than a node can have`,
      `keep to ${MOST_ASSOCIATIONS}`,
    );
  }
  const inbound = new Unique(findings);
  const outbound = new Unique(findings);
  const keys = new Unique(findings);
  for (const { path, fields } of associations) {
    const { peer, direction, spi, key } = fields;
    if (peer !== undefined && checkVtep(peer, [...path, 'peer'], 'peer', underlay, findings)) {
      const what = `the outbound association with ${peer.text}`;
      const remedy = 'keep the one that sends';
      if (direction === 'out') outbound.add(peer.text, [...path, 'peer'], what, remedy);
    }
    if (direction === 'in' && spi !== undefined) {
      const what = `inbound SPI 0x${spi.toString(16)}`;
      inbound.add(String(spi), [...path, 'spi'], what, 'give each inbound association its own SPI');
    }
    checkKeyLength({ path, fields }, findings);
    if (key === undefined) continue;
    // Both would count from one: the same nonce twice under one key gives away both texts and the key of the ICV.
    const what = 'this key with its salt';
    keys.add(hex(key), [...path, 'key'], what, 'give each association a key of its own, in and out too');
  }
}

function checkKeyLength({ path, fields }: Part<Draft<typeof associationSchema>>, findings: Findings): void {
  const { algorithm, key } = fields;
  if (algorithm === undefined || key === undefined) return;
  const bytes = algorithmSizes(algorithm).key;
  if (key.length === bytes + SALT) return;
  findings.add(
    [...path, 'key'],
    `key has ${2 * key.length} hex digits, and ${algorithm} takes ${2 * (bytes + SALT)}`,
    `write ${2 * bytes} of the key and ${2 * SALT} of the salt, or another algorithm`,
  );
}

/** Each VTEP of an encrypted network needs keys: static ones in both directions, or, having none, the ring's. */
function checkCovered(
  { path, fields, peers }: NetworkDraft,
  { address }: UnderlayDraft,
  endpoints: readonly EndpointDraft[],
  { associations, secrets }: EncryptionDraft,
  findings: Findings,
): void {
  const place: Path = [...path, 'encrypted'];
  const ring = secrets.includes(KEYS);
  if (!ring && !secrets.includes(ASSOCIATIONS)) {
    findings.add(
      place,
      'the network is encrypted, and there are no keys',
      'add encryption.keys, with secrets made by "openssl rand -hex 32"',
    );
    return;
  }
  // What could not be read may be what is missing.
  const unread = associations.some(({ fields: { peer, direction } }) => !peer || !direction);
  if (unread || (!ring && associations.length === 0)) return;
  const remote = endpoints.filter((one) => one.fields.network === fields.name);
  const vteps = [...peers.map(({ ip }) => ip), ...remote.map((one) => one.fields.vtep)];
  const others = vteps.filter((vtep) => vtep?.family === address?.family && vtep?.text !== address?.text);
  const have = new Set(associations.map(({ fields: one }) => `${one.direction} ${one.peer!.text}`));
  const missing = [...new Set(others.flatMap((vtep) => vtep?.text ?? []))].flatMap((vtep) => {
    const absent = ['in', 'out'].filter((direction) => !have.has(`${direction} ${vtep}`));
    return absent.length === 1 || (absent.length === 2 && !ring) ? [`${vtep} (${absent.join(' and ')})`] : [];
  });
  if (missing.length === 0) return;
  const named = missing.slice(0, MOST_NAMED).join(', ');
  const more = missing.length > MOST_NAMED ? ` and ${missing.length - MOST_NAMED} more` : '';
  findings.add(
    place,
    `the network is encrypted, and security_associations lacks ${named}${more}`,
    ring
      ? 'add what is missing, or leave these peers to encryption.keys'
      : 'add what is missing, or encryption.keys',
  );
}

// Past this line nothing is missing, as in config.ts.

/** Undefined when the file neither speaks of encryption nor has an encrypted network. */
export function buildEncryption(
  draft: EncryptionDraft,
  networks: readonly NetworkDraft[],
): Encryption | undefined {
  if (!isUsed(draft, networks)) return undefined;
  const { fields, rotate, keys } = draft;
  return {
    keys: keys.map((key) => ({ id: key.fields.id!, secret: key.fields.secret! })),
    encapsulation: fields.encapsulation!,
    port: fields.port!,
    exchangePort: fields.exchange_port!,
    algorithm: fields.algorithm!,
    replayWindow: fields.replay_window!,
    rotate: { after: rotate.after!, packets: rotate.packets!, bytes: rotate.bytes! },
  };
}

export function buildAssociations({ associations }: EncryptionDraft): StaticAssociation[] {
  return associations.map(({ fields }) => ({
    peer: fields.peer!.text,
    direction: fields.direction!,
    spi: fields.spi!,
    algorithm: fields.algorithm!,
    key: fields.key!,
    esn: fields.esn!,
    replayWindow: fields.replay_window!,
  }));
}
