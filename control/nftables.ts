/**
 * Tables of nftables that are ours: each is made as a whole, and made again when somebody removes it with his own, as
 * `nft flush ruleset` and a reload of a firewall do.
 *
 * Not handled: what somebody takes out of a table that stays.
 */
import { runSync } from './command.js';
import { hasTable, type Table } from './netlink.js';

/** How often to look. */
const LOOK_MS = 1000;

/** Makes tables what a text says, in one transaction. @throws CommandError when nft or the kernel refuses. */
export function makeTables(text: string): void {
  runSync('nft', ['-f', '-'], { input: text });
}

/** Removes a table of ours; one that is not there is no error. */
export function removeTable(table: Table): void {
  try {
    runSync('nft', ['delete', 'table', ...table.split(' ')]);
  } catch {
    // Not there, or no nft on this host, and then no table either.
  }
}

interface Owner {
  /** Whom a line of the log is about. */
  readonly name: string;
  readonly log: (line: string) => void;
  /** What is to be there now. */
  readonly tables: () => readonly Table[];
  /** Whether there is another reason to make them. */
  readonly changed?: () => boolean;
  readonly make: () => void;
}

/** Looks after the tables of an owner until it is closed. */
export class TableWatch {
  private readonly timer = setInterval(() => this.look(), LOOK_MS).unref();
  /** What was wrong at the last look, and was said. */
  private trouble = '';

  constructor(private readonly owner: Owner) {}

  private look(): void {
    const { name, log, changed, make } = this.owner;
    const tables = this.owner.tables();
    if (tables.length === 0) return;
    try {
      const gone = tables.filter((table) => !hasTable(table));
      if (!changed?.() && gone.length === 0) return;
      for (const table of gone) log(`${name}: its table ${table} was removed, and is made again`);
      make();
      this.trouble = '';
    } catch (error) {
      const { message } = error as Error;
      if (message !== this.trouble) log(`${name}: its rules are not kept up: ${message}`);
      this.trouble = message;
    }
  }

  close(): void {
    clearInterval(this.timer);
  }
}
