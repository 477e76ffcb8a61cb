/** `weft replay` in a process of its own, and the captures it is tried on. */
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Capture } from '../../engine/ports/capture/capture.js';

const MAIN = fileURLToPath(new URL('../../cli/main.js', import.meta.url));
/** Folder of the captures of the repository. */
export const OWN = fileURLToPath(new URL('../../../pcaps', import.meta.url));

export const own = (name: string): string => join(OWN, name);

export interface Outcome {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

export function weft(...args: string[]): Promise<Outcome> {
  return new Promise((resolve) => {
    execFile(process.execPath, [MAIN, 'replay', ...args], (error, stdout, stderr) =>
      resolve({ code: error === null ? 0 : Number(error.code), stdout, stderr }),
    );
  });
}

/** Bytes of a packet of a capture. */
export function packet(capture: Capture, i: number): Buffer {
  const { bytes, offsets, capturedLengths } = capture;
  return Buffer.from(bytes.buffer, bytes.byteOffset + offsets[i], capturedLengths[i]);
}
