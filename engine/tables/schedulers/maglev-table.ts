/**
 * How the table of `maglev` is filled: each backend has a list of all cells, in an order of its own, and they take turns
 * at the first cell of their list that is free.
 *
 * Three things are not as in the paper, each chosen by what it did over hundreds of random sets:
 * - A list is a permutation by multiplications and shifts rather than steps of equal length in a table of a prime number
 *   of cells. Of two backends whose steps are in a simple proportion one goes where the other has just been: with steps,
 *   at worst 3.5 % of the clients moved besides those that had to, and 10 backends were up to 14 % off their shares.
 * - Until 97 % of the cells are taken, a turn is one place in the list, whether that cell is free or not: it is whose list
 *   has it first, which no third backend can change. The rest goes as in the paper, by turns of one free cell, those
 *   first that have least for their weight; that makes the shares even. When one of 10 backends goes, 0.6 % of the clients
 *   move besides its own, and at most 0.9 %; with the paper's turns alone it is 0.7 and 1.1 %.
 * - There are three sizes. 12,288 cells are for up to 122 backends, 100 for each as in the paper, and no more: 10,000
 *   consecutive clients meet most of the cells then, and so are spread as the cells are, over 10 backends within 5 % of
 *   their shares (2.6 % on average). With 65,536 cells, of which they meet a sixth, half of all sets are not. Above 122
 *   backends there are 131,072 cells, above 1,310 there are 1,048,576. A service that grows past 122 or 1,310, or shrinks,
 *   gets a table of another size, and then most of its clients another backend.
 *
 * A table takes 24 KiB for up to 122 backends, 235 MiB for 10,000 such services; and at most 2.1 KiB for each backend in
 * larger services. Filling takes about 1.3 ms of work for 10 backends, 13 ms for 1,000, in as small pieces as asked for.
 *
 * Only sums, products and quotients, no powers or logarithms: those may differ between machines in the last bit.
 */
import type { Backends } from '../backends.js';

/** Cells for a backend, at least, as long as there is a larger table. */
const CELLS_EACH = 100;
const SIZES = [12288, 131072, 1048576] as const;
/** Cells of 100 that go to whose list has them first. */
const FIRST_COME_PERCENT = 97;
/** A cell that is nobody's yet; a service has at most 65,535 backends, whose places are below. */
const FREE = 0xffff;

export class TableBuilder {
  readonly table: Uint16Array;
  /** Backends in an order that is the same on every node. */
  readonly members: Int32Array;
  /** Of the smallest power of two that holds all cells. */
  private readonly bits: number;
  private filled = 0;
  private readonly firstCome: number;
  /** Of each member: keys of its permutation, its weight to the heaviest, how far it is in its list, and cells it has. */
  private readonly keys: Int32Array;
  private readonly share: Float64Array;
  private readonly next: Int32Array;
  private readonly cells: Int32Array;
  /** Of each member: what is left of its list, as the passage of time goes. */
  private readonly ahead: Float64Array;
  private turn = 0;
  /** Cells that the heaviest is to have, when the rest is filled. */
  private level = 1;

  constructor(
    backends: Backends,
    readonly service: number,
  ) {
    const { weight, identity, port } = backends;
    const eligible = backends.lists[service].filter((backend) => weight[backend] > 0);
    const keyed = [...eligible].map((backend) => {
      const key = mix(identity[backend] ^ mix(port[backend] + 1));
      return { backend, order: key >>> 0, keys: [mix(key ^ 0x3c6ef372), mix(key ^ 0x1b873593)] };
    });
    keyed.sort(
      (a, b) =>
        a.order - b.order || identity[a.backend] - identity[b.backend] || port[a.backend] - port[b.backend],
    );
    this.members = Int32Array.from(keyed, ({ backend }) => backend);
    const count = keyed.length;
    const [largest] = SIZES.slice(-1);
    const size = count === 0 ? 0 : (SIZES.find((cells) => cells >= CELLS_EACH * count) ?? largest);
    this.bits = Math.ceil(Math.log2(Math.max(size, 2)));
    this.firstCome = Math.floor((size * FIRST_COME_PERCENT) / 100);
    this.table = new Uint16Array(size).fill(FREE);
    this.keys = Int32Array.from(keyed.flatMap(({ keys }) => keys));
    const heaviest = this.members.reduce((most, backend) => Math.max(most, weight[backend]), 0);
    this.share = Float64Array.from(this.members, (backend) => weight[backend] / heaviest);
    this.next = new Int32Array(count);
    this.cells = new Int32Array(count);
    this.ahead = new Float64Array(count).fill(size);
  }

  get done(): boolean {
    return this.filled === this.table.length;
  }

  /** Goes on for about so many steps. @returns how many it took. */
  work(steps: number): number {
    let spent = 1;
    while (!this.done && spent < steps)
      spent += this.filled < this.firstCome ? this.takeFirstCome() : this.takeFree();
    return spent;
  }

  /**
   * Time passes by as much as the heaviest takes for a place of its list; another gets on by its weight, of what is left
   * to it, so that the chances at a cell are as the weights, however much of the lists is behind them.
   */
  private takeFirstCome(): number {
    const { next, ahead, turn, table } = this;
    let steps = 1;
    ahead[turn] -= (ahead[turn] * this.share[turn]) / table.length;
    for (const until = table.length - ahead[turn] - 1; next[turn] <= until; steps++) {
      this.take(turn, this.cell(turn));
      next[turn]++;
    }
    this.turn = turn + 1 === next.length ? 0 : turn + 1;
    return steps;
  }

  /** Who has less than its share of `level` gets the next free cell of its list. */
  private takeFree(): number {
    const { turn, next, cells } = this;
    let steps = 1;
    if (cells[turn] < this.level * this.share[turn]) {
      for (; this.table[this.cell(turn)] !== FREE; steps++) next[turn]++;
      this.take(turn, this.cell(turn));
      next[turn]++;
    }
    if (cells[turn] < this.level * this.share[turn]) return steps;
    this.turn = turn + 1;
    if (this.turn < next.length) return steps;
    this.turn = 0;
    this.level++;
    return steps;
  }

  private take(turn: number, cell: number): void {
    if (this.table[cell] !== FREE) return;
    this.table[cell] = turn;
    this.cells[turn]++;
    this.filled++;
  }

  /**
   * The cell where a member is in its list: a permutation of all numbers of so many bits, each step of which can be
   * undone, done over as long as the result is no cell.
   */
  private cell(turn: number): number {
    const { bits } = this;
    const size = this.table.length;
    const mask = (1 << bits) - 1;
    const half = bits >> 1;
    const one = this.keys[turn * 2];
    const two = this.keys[turn * 2 + 1];
    let x = this.next[turn];
    do {
      x = (Math.imul(x, 0x9e3779b1) + one) & mask;
      x ^= x >>> half;
      x = (Math.imul(x, two | 1) + (one >>> 9)) & mask;
      x ^= x >>> half;
      x = Math.imul(x, 0x85ebca6b) & mask;
      x ^= x >>> (half - 1);
      x = (Math.imul(x, one | 1) + (two >>> 7)) & mask;
      x ^= x >>> half;
    } while (x >= size);
    return x;
  }
}

/** The finisher of MurmurHash3: every bit of the result depends on every bit. */
export function mix(word: number): number {
  let h = Math.imul(word ^ (word >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return h ^ (h >>> 16);
}
