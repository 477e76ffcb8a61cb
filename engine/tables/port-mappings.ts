/**
 * The ports of one external address: which inside endpoint (domain, address, port) has which of them, and which are
 * free. A port stands for one endpoint, whatever its remote ends are: endpoint-independent mapping without overloading
 * (RFC 4787, REQ-1 and REQ-3; RFC 5382, REQ-1 and REQ-7; RFC 5508, REQ-1a for identifiers of ICMP queries).
 *
 * Ports are numbers; addresses are words as little-endian loads give them. Everything is typed arrays of fixed size.
 */

/** Port spaces: each protocol has its own. */
export const SPACE_TCP = 0;
export const SPACE_UDP = 1;
export const SPACE_ICMP = 2;
export const SPACES = 3;

const PORTS = 65536;
/** Ports below are for privileged programs, and stay among themselves. */
const FIRST_UNPRIVILEGED = 1024;
/** Lists of free ports in a space. */
const LISTS = 4;
/** Slots of the index by endpoint, at a load of at most 0.4. */
const SLOTS = 1 << 19;
/** An index word holds space and port in its low bits, plus one, and bits of the hash above. */
const REF_MASK = (1 << 18) - 1;

/** No port. */
export const NO_PORT = -1;

export class PortMappings {
  /** Endpoint of each port of each space: address; and port (bits 0–15) with domain + 1 (16–31), 0 when free. */
  readonly inside = new Int32Array(PORTS * SPACES);
  readonly endpoint = new Int32Array(PORTS * SPACES);
  /** Flows that use it. */
  private readonly uses = new Int32Array(PORTS * SPACES);
  private readonly index = new Int32Array(SLOTS);
  /** Free ports by space, whether they are below 1024, and parity. */
  private readonly freePorts: Uint16Array[] = [];
  private readonly freeCount: number[] = [];
  /** Where in its list each free port is; -1 when it is taken or out of range. */
  private readonly place = new Int32Array(PORTS * SPACES).fill(-1);

  /**
   * @param first lowest port given out by itself, and `last` the highest; ports are in host order here.
   * @param random a whole number below its argument; which ports come next must not be guessed (RFC 6056).
   */
  constructor(
    private readonly seed: number,
    readonly first: number,
    readonly last: number,
    private readonly random: (below: number) => number,
  ) {
    for (let list = 0; list < SPACES * LISTS; list++) {
      this.freePorts.push(new Uint16Array(PORTS / 2));
      this.freeCount.push(0);
    }
    for (let space = 0; space < SPACES; space++)
      for (let port = first; port <= last; port++) this.giveBack(space, port);
  }

  /** Bytes of everything, whatever is in it. */
  get bytes(): number {
    const arrays = [this.inside, this.endpoint, this.uses, this.index, this.place, ...this.freePorts];
    return arrays.reduce((sum, { byteLength }) => sum + byteLength, 0);
  }

  private hash(space: number, inside: number, endpoint: number): number {
    let h = Math.imul(inside ^ this.seed, 0x9e3779b1);
    h = Math.imul(h ^ (h >>> 15) ^ endpoint, 0xc2b2ae35);
    h = Math.imul(h ^ (h >>> 13) ^ space, 0x27d4eb2f);
    return h ^ (h >>> 15);
  }

  /** Port of an endpoint, or NO_PORT. @param endpoint port in bits 0–15, domain + 1 above. */
  find(space: number, inside: number, endpoint: number): number {
    const { index } = this;
    const hash = this.hash(space, inside, endpoint);
    for (let i = hash & (SLOTS - 1); ; i = (i + 1) & (SLOTS - 1)) {
      const word = index[i];
      if (word === 0) return NO_PORT;
      if (((word ^ hash) & ~REF_MASK) !== 0) continue;
      const ref = (word & REF_MASK) - 1;
      if (this.endpoint[ref] === endpoint && this.inside[ref] === inside && ref >>> 16 === space)
        return ref & 0xffff;
    }
  }

  /**
   * Gives an endpoint a port: its own when that is free, else one of the same range and parity (RFC 4787, REQ-3a and
   * REQ-4), else of the same range, else any.
   * @returns NO_PORT when there is none left.
   */
  allocate(space: number, inside: number, endpoint: number, wanted: number): number {
    let port = wanted;
    if (this.place[space * PORTS + wanted] < 0) {
      const alike = listOf(wanted);
      port = NO_PORT;
      for (let other = 0; other < LISTS && port === NO_PORT; other++)
        port = this.pick(space * LISTS + (alike ^ other));
      if (port === NO_PORT) return NO_PORT;
    }
    this.assign(space, inside, endpoint, port);
    return port;
  }

  /** Gives an endpoint this very port. @returns false when somebody has it. */
  claim(space: number, inside: number, endpoint: number, port: number): boolean {
    if (this.endpoint[space * PORTS + port] !== 0) return false;
    this.assign(space, inside, endpoint, port);
    return true;
  }

  /** Some port of those that are given out, of this parity where there is one. */
  anyOf(parity: number): number {
    const port = this.first + this.random(this.last - this.first + 1);
    if ((port & 1) === parity) return port;
    return port < this.last ? port + 1 : Math.max(port - 1, this.first);
  }

  /** The next of those that are given out of the same parity; the first again behind the last. */
  after(port: number): number {
    if (port + 2 <= this.last) return port + 2;
    const first = this.first + ((this.first ^ port) & 1);
    return Math.min(first, this.last);
  }

  private pick(list: number): number {
    const count = this.freeCount[list];
    return count === 0 ? NO_PORT : this.freePorts[list][this.random(count)];
  }

  private assign(space: number, inside: number, endpoint: number, port: number): void {
    const at = space * PORTS + port;
    this.take(space, port);
    this.inside[at] = inside;
    this.endpoint[at] = endpoint;
    const hash = this.hash(space, inside, endpoint);
    let i = hash & (SLOTS - 1);
    while (this.index[i] !== 0) i = (i + 1) & (SLOTS - 1);
    this.index[i] = (hash & ~REF_MASK) | (at + 1);
  }

  private take(space: number, port: number): void {
    const place = this.place[space * PORTS + port];
    if (place < 0) return;
    const list = space * LISTS + listOf(port);
    const last = this.freePorts[list][--this.freeCount[list]];
    this.freePorts[list][place] = last;
    this.place[space * PORTS + last] = place;
    this.place[space * PORTS + port] = -1;
  }

  private giveBack(space: number, port: number): void {
    if (port < this.first || port > this.last) return;
    const list = space * LISTS + listOf(port);
    this.place[space * PORTS + port] = this.freeCount[list];
    this.freePorts[list][this.freeCount[list]++] = port;
  }

  /** Counts a flow, or whoever claimed it, that uses the port. */
  use(space: number, port: number): void {
    this.uses[space * PORTS + port]++;
  }

  /** Ends a flow's use; the last one frees the port. */
  release(space: number, port: number): void {
    const at = space * PORTS + port;
    if (--this.uses[at] <= 0) this.free(at);
  }

  private free(at: number): void {
    this.uses[at] = 0;
    this.erase(at);
    this.endpoint[at] = 0;
    this.giveBack(at >>> 16, at & 0xffff);
  }

  private erase(ref: number): void {
    const { index } = this;
    const mask = SLOTS - 1;
    let hole = this.hash(ref >>> 16, this.inside[ref], this.endpoint[ref]) & mask;
    while ((index[hole] & REF_MASK) !== ref + 1) hole = (hole + 1) & mask;
    for (let i = (hole + 1) & mask; index[i] !== 0; i = (i + 1) & mask) {
      const other = (index[i] & REF_MASK) - 1;
      const home = this.hash(other >>> 16, this.inside[other], this.endpoint[other]) & mask;
      if (((i - home) & mask) < ((i - hole) & mask)) continue;
      index[hole] = index[i];
      hole = i;
    }
    index[hole] = 0;
  }

  /** Ports that may still be given out by themselves. */
  available(space: number): number {
    let free = 0;
    for (let list = 0; list < LISTS; list++) free += this.freeCount[space * LISTS + list];
    return free;
  }
}

/** The list of a port within its space: parity in bit 0, whether it is below 1024 in bit 1. */
function listOf(port: number): number {
  return (port & 1) | (port < FIRST_UNPRIVILEGED ? 2 : 0);
}
