/** What is said, once, of a VTEP that did what its operator should hear of. */
import { SAW_ESP_FOR_PLAIN, SAW_NO_ASSOCIATION, SAW_PLAIN_FOR_ENCRYPTED } from '../engine/tables/vteps.js';

const SEEN: Readonly<Record<number, string>> = {
  [SAW_NO_ASSOCIATION]:
    'no traffic keys are agreed with it yet, so what goes there is dropped ("weft sa ls")',
  [SAW_PLAIN_FOR_ENCRYPTED]: 'it sends plain VXLAN for an encrypted network, which is dropped',
  [SAW_ESP_FOR_PLAIN]: 'it sends encrypted VXLAN for a network that is plain here, which is dropped',
};

/** How long to wait for traffic keys before saying that there are none. */
const UNKEYED_MS = 3000;

export class Seen {
  /** VTEPs and what was seen of them and is said, or is about to be. */
  private readonly said = new Set<string>();

  constructor(private readonly log: (line: string) => void) {}

  /**
   * Once, whichever workers see it. Keys take a moment to be agreed on; only when they are not by then is that worth a
   * line, and worth it again once there were some.
   */
  say(vtep: string, saw: number): void {
    const what = `${vtep} ${saw}`;
    if (this.said.has(what)) return;
    this.said.add(what);
    const line = `${vtep}: ${SEEN[saw]}`;
    if (saw !== SAW_NO_ASSOCIATION) this.log(line);
    else setTimeout(() => this.said.has(what) && this.log(line), UNKEYED_MS).unref();
  }

  /** There are traffic keys with a VTEP. */
  keyed(vtep: string): void {
    this.said.delete(`${vtep} ${SAW_NO_ASSOCIATION}`);
  }
}
