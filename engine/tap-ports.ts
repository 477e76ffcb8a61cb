/** The TAPs of a data plane: which are open, waited on and members of which domain. */
import { native } from '../native-bindings/index.js';
import { Batch, type Context, type Stages } from './graph.js';
import type { PortIntent } from './intent.js';
import type { Port } from './ports/port.js';
import { createTapPort } from './ports/tap.js';
import type { Domains } from './tables/domains.js';
import type { MacTable } from './tables/mac-table.js';

interface Options {
  readonly context: Context;
  readonly domains: Domains;
  readonly table: MacTable;
  readonly stages: Stages;
  /** Outputs by number of the port. */
  readonly outputs: (Batch | null)[];
  /** Descriptor of the wait. */
  readonly wait: number;
  /** Called when a port's device is gone, once. */
  readonly onLost: (id: number) => void;
}

export class TapPorts {
  private readonly open = new Map<number, { readonly port: Port; readonly domain: number }>();
  /** Ports whose device is gone, and which are waited on no more. */
  private readonly lost = new Set<number>();

  constructor(private readonly options: Options) {}

  /** Opens a port; one that is there under its number goes first. */
  add(intent: PortIntent): void {
    this.remove(intent.id);
    const { id, fd, domain } = intent;
    const { context, domains, stages, outputs, wait } = this.options;
    const port = createTapPort(context, intent);
    try {
      native.waitAdd(wait, fd, id);
    } catch (error) {
      port.close();
      throw error;
    }
    this.open.set(id, { port, domain });
    outputs[id] = stages.add(new Batch(port));
    domains.addPort(domain, id);
  }

  /** Closes a port, if it is there. */
  remove(id: number): void {
    const { domains, table, stages, outputs, wait } = this.options;
    const found = this.open.get(id);
    const output = outputs[id];
    if (!found || !output) return;
    const { port, domain } = found;
    if (!this.lost.delete(id)) native.waitRemove(wait, port.fd);
    domains.removePort(domain, id);
    table.removeWhere((_, destination) => destination === id);
    outputs[id] = null;
    stages.remove(output);
    this.open.delete(id);
    port.close();
  }

  receive(id: number, to: Batch): void {
    const { wait, onLost } = this.options;
    const port = this.open.get(id)?.port;
    if (!port || port.receive(to) >= 0) return;
    // A device that is gone stays readable for ever: without this the wait would spin.
    native.waitRemove(wait, port.fd);
    this.lost.add(id);
    onLost(id);
  }
}
