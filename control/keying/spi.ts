/** Security parameter indices (RFC 4303 section 2.1). */

/** 0 is for local use, 1 to 255 are reserved. */
export const FIRST_SPI = 256;

/** As people write it. */
export function hexSpi(spi: number): string {
  return `0x${spi.toString(16).padStart(8, '0')}`;
}
