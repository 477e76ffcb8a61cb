/** AES-GCM ESP by node:crypto (RFC 4106), packet by packet: what the addon's batches are compared with. */
import { createCipheriv } from 'node:crypto';

export interface EspKey {
  readonly key: Uint8Array;
  readonly salt: Uint8Array;
  readonly icv: 8 | 12 | 16;
  readonly esn: boolean;
}

export const hex = (text: string): Uint8Array => Uint8Array.from(Buffer.from(text, 'hex'));

/** Bytes that only the seed decides. */
export function noise(seed: number, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  for (let i = 0, x = seed; i < length; i++) {
    x = (Math.imul(x, 1103515245) + 12345) >>> 0;
    bytes[i] = x >>> 16;
  }
  return bytes;
}

/**
 * Ciphertext with the ICV behind it.
 * @param header SPI, low half of the sequence number and IV, 16 bytes.
 * @param high half of the sequence number, authenticated with ESN only.
 */
export function sealed(under: EspKey, header: Uint8Array, plain: Uint8Array, high: number): Uint8Array {
  const name = `aes-${under.key.length * 8}-gcm` as 'aes-128-gcm' | 'aes-192-gcm' | 'aes-256-gcm';
  const iv = Buffer.concat([under.salt, header.subarray(8, 16)]);
  const cipher = createCipheriv(name, under.key, iv, { authTagLength: under.icv });
  const middle = Buffer.alloc(under.esn ? 4 : 0);
  if (under.esn) middle.writeUInt32BE(high);
  cipher.setAAD(Buffer.concat([header.subarray(0, 4), middle, header.subarray(4, 8)]));
  const text = [cipher.update(plain), cipher.final()];
  return new Uint8Array(Buffer.concat([...text, cipher.getAuthTag()]));
}
