/** Key material as it is carried about outside the addon: a value that no print, log or JSON shows. */
import { inspect } from 'node:util';

const SHOWN = '[secret]';

export class Secret {
  readonly #hex: string;

  /** @param hex an even number of hexadecimal digits. */
  constructor(hex: string) {
    if (!/^(?:[0-9a-f]{2})+$/i.test(hex)) throw new TypeError('a secret is an even number of hex digits');
    this.#hex = hex.toLowerCase();
  }

  /** Length in bytes. */
  get length(): number {
    return this.#hex.length / 2;
  }

  /** A copy of the bytes, to be overwritten by whoever asked for it. */
  bytes(): Uint8Array {
    return Uint8Array.from(Buffer.from(this.#hex, 'hex'));
  }

  equals(other: Secret): boolean {
    return this.#hex === other.#hex;
  }

  toString(): string {
    return SHOWN;
  }

  toJSON(): string {
    return SHOWN;
  }

  [inspect.custom](): string {
    return SHOWN;
  }
}
