/** What a `Tap` and the thread that reads for it both know. */

/** Bytes of the vnet header in front of each frame of a plain TAP. */
export const PLAIN_HEADER = 10;

/** Words shared with the stream: how many bursts it has taken, and whether to end. */
export const TAKEN = 0;
export const STOP = 1;

export interface ReaderData {
  readonly fd: number;
  /** Event that wakes the thread so that it sees STOP. */
  readonly wake: number;
  readonly shared: Int32Array;
}
