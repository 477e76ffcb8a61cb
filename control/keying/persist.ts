/**
 * Sequence numbers of static outbound associations, which outlive the process: the peer's window refuses what counts
 * from one again (RFC 4303 section 3.4.3). A small file holds, for each association, a number that nothing sent has
 * reached; a start counts on from there. The number is ahead of what is sent, so that it is not written for each
 * packet, and a crash costs what lies between: 2^20 numbers, or what is sent in 1.6 s where that is more. Only a rate
 * that rises above 5 Mpps within a tenth of a second passes it.
 *
 * The file is beside the control socket, where a reboot clears it. Then, as when it is lost, the numbers begin at one,
 * and the peer must forget its window too (`ip xfrm state`, or a restart). Nonces do not depend on it: an IV is the
 * sequence number xored with 64 bits drawn at each start. Two starts that send N packets each under one key meet in
 * an IV with a probability below N / 2^62. That is little, and it is not nothing: static keys are for foreign peers
 * and tests, and the key ring never uses a key after a restart.
 *
 * Inbound associations begin with an empty window: after a restart a static one takes once more what it took before.
 */
import { createHash } from 'node:crypto';
import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import type { StaticAssociation } from '../config.js';
import { hexSpi } from './spi.js';

/** Numbers that are reserved ahead. */
export const RESERVE = 2 ** 20;
/** Reserve at least as much as so many looks have used. */
const LOOKS_AHEAD = 16;
/** Associations that a file remembers; those used longest ago are forgotten first. */
const REMEMBERED = 16_384;
/** Last number without extended sequence numbers. */
const LAST_32 = 2 ** 32 - 1;

interface Followed {
  readonly association: StaticAssociation;
  /** Last number sent. */
  readonly last: () => number;
  /** What `last` was at the last look. */
  seen: number;
  /** Numbers reserved at a time. */
  ahead: number;
}

/** Names an association with its key in the file without showing the key; with another key it is another one. */
export function fingerprint({ key, spi, peer }: StaticAssociation): string {
  const bytes = key.bytes();
  try {
    return createHash('sha256')
      .update(bytes)
      .update(`${hexSpi(spi)} ${peer}`)
      .digest('hex')
      .slice(0, 32);
  } finally {
    bytes.fill(0);
  }
}

export class ReservedSequences {
  /** By fingerprint; what was reserved last comes last. */
  private readonly bounds: Map<string, number>;
  private readonly followed = new Map<string, Followed>();
  private changed = false;
  private refused = false;

  /** A file that is missing or damaged is an empty one. */
  constructor(
    private readonly path: string,
    private readonly log: (line: string) => void,
  ) {
    this.bounds = read(path, log);
  }

  /**
   * Reserves numbers for an association that is to send once `save` was called.
   * @param last tells its last number sent; asked at each look.
   * @returns the number after which it is to begin: 0 for a new one.
   */
  begin(association: StaticAssociation, last: () => number): number {
    const id = fingerprint(association);
    const bound = this.bounds.get(id) ?? 0;
    if (!association.esn && bound >= LAST_32) {
      this.log(
        `the static association that sends to ${association.peer} has used up its sequence numbers: give it another key`,
      );
    }
    this.followed.set(id, { association, last, seen: bound, ahead: RESERVE });
    this.reserve(id, bound + RESERVE);
    return bound;
  }

  /** The association does not send any more; what is reserved stays so. */
  end(association: StaticAssociation): void {
    this.followed.delete(fingerprint(association));
  }

  /** To be called ten times a second: reserves more where half of it is used. */
  look(): void {
    for (const [id, one] of this.followed) {
      const last = one.last();
      const used = last - one.seen;
      one.seen = last;
      one.ahead = Math.max(RESERVE, used * LOOKS_AHEAD);
      if (this.bounds.get(id)! - last > one.ahead / 2) continue;
      this.reserve(id, last + one.ahead);
    }
    this.save();
  }

  /** Nothing sends any more: notes the numbers that were reached. */
  close(): void {
    if (this.followed.size === 0) return;
    for (const [id, { last }] of this.followed) this.bounds.set(id, last());
    this.followed.clear();
    this.changed = true;
    this.save();
  }

  private reserve(id: string, wanted: number): void {
    const { association } = this.followed.get(id)!;
    const before = this.bounds.get(id);
    const bound = association.esn ? wanted : Math.min(wanted, LAST_32);
    // Set anew, so that it moves behind the others.
    this.bounds.delete(id);
    this.bounds.set(id, bound);
    if (bound !== before) this.changed = true;
  }

  /** Writes the file, if there is anything to write. */
  save(): void {
    if (!this.changed) return;
    this.changed = false;
    for (const id of this.bounds.keys()) {
      if (this.bounds.size <= REMEMBERED) break;
      this.bounds.delete(id);
    }
    try {
      mkdirSync(dirname(this.path), { recursive: true });
      writeFileSync(`${this.path}.new`, JSON.stringify({ sequences: Object.fromEntries(this.bounds) }), {
        mode: 0o600,
      });
      renameSync(`${this.path}.new`, this.path);
      this.refused = false;
    } catch (error) {
      if (this.refused) return;
      this.refused = true;
      this.log(
        `sequence numbers of static associations cannot be kept for the next start: ${(error as Error).message}`,
      );
    }
  }
}

function read(path: string, log: (line: string) => void): Map<string, number> {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch {
    return new Map();
  }
  try {
    const { sequences } = JSON.parse(text) as { sequences: Record<string, unknown> };
    const found = Object.entries(sequences).filter(
      (pair): pair is [string, number] => Number.isSafeInteger(pair[1]) && (pair[1] as number) >= 0,
    );
    return new Map(found);
  } catch {
    log(`${path} is damaged: static associations count from one, and their peers may refuse them`);
    return new Map();
  }
}
