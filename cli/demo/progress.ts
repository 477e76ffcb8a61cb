/** The line that tells what a long command is doing: rewritten in place on a terminal, plain lines elsewhere. */
import type { WriteStream } from 'node:tty';

export class Progress {
  private done = 0;
  private readonly live: boolean;
  private shown = false;

  constructor(
    private readonly total: number,
    private readonly stream: Pick<WriteStream, 'write' | 'isTTY' | 'columns'> = process.stderr,
  ) {
    this.live = stream.isTTY === true && process.env['TERM'] !== 'dumb';
  }

  /** Names the next of the steps. */
  step(text: string): void {
    this.done++;
    const line = `[${this.done}/${this.total}] ${text}`;
    if (!this.live) {
      this.stream.write(`${line}\n`);
      return;
    }
    // A line that wraps could not be rewritten.
    this.stream.write(`\r${line.slice(0, (this.stream.columns || 80) - 1)}\u001b[K`);
    this.shown = true;
  }

  /** Takes the line away, so that what is printed next starts at the left. */
  clear(): void {
    if (this.shown) this.stream.write('\r\u001b[K');
    this.shown = false;
  }
}
