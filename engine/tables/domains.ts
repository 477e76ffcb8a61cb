/**
 * Broadcast domains: what the elements must know of each network. A domain is a small number; its parameters
 * lie in parallel arrays, its members in lists that only change when the intent does.
 */
import { MAX_DOMAINS } from './mac-table.js';

/** Flags of a domain. */
export const CARRY_VLAN = 1;
export const LEARN = 2;
/** Decapsulate only what comes from a VTEP that is a peer of the domain. */
export const PEERS_ONLY = 4;
/** Its VXLAN leaves the host inside ESP only, and nothing else is accepted for it. */
export const ENCRYPTED = 8;

export class Domains {
  /** VXLAN network identifier; valid while `used` is set. */
  readonly vni = new Uint32Array(MAX_DOMAINS);
  readonly flags = new Uint8Array(MAX_DOMAINS);
  readonly used = new Uint8Array(MAX_DOMAINS);
  /** Seconds after which a learned station is forgotten; 0 never. */
  readonly ageing = new Uint32Array(MAX_DOMAINS);
  /** Local ports of each domain, for flooding. */
  readonly ports: Uint16Array[] = [];
  /** VTEP indices of each domain, for head-end replication. */
  readonly vteps: Uint16Array[] = [];
  private readonly byVni = new Map<number, number>();

  constructor() {
    for (let i = 0; i < MAX_DOMAINS; i++) {
      this.ports.push(EMPTY);
      this.vteps.push(EMPTY);
    }
  }

  /** Sets up a domain. @throws RangeError when a number is out of range or the VNI is another domain's. */
  set(domain: number, options: { vni: number; flags: number; ageing: number }): void {
    if (domain < 0 || domain >= MAX_DOMAINS)
      throw new RangeError(`domain ${domain} is not below ${MAX_DOMAINS}`);
    if (!Number.isInteger(options.vni) || options.vni < 0 || options.vni > 0xffffff)
      throw new RangeError(`VNI ${options.vni} does not fit into 24 bits`);
    const other = this.byVni.get(options.vni);
    if (other !== undefined && other !== domain)
      throw new RangeError(`VNI ${options.vni} belongs to domain ${other}`);
    this.freeVni(domain);
    this.byVni.set(options.vni, domain);
    this.vni[domain] = options.vni;
    this.flags[domain] = options.flags;
    this.ageing[domain] = options.ageing;
    this.used[domain] = 1;
  }

  /** Lets another domain have the VNI of one that is about to get another. */
  freeVni(domain: number): void {
    if (this.find(this.vni[domain]) === domain) this.byVni.delete(this.vni[domain]);
  }

  remove(domain: number): void {
    this.freeVni(domain);
    this.used[domain] = 0;
    this.vni[domain] = 0;
    this.flags[domain] = 0;
    this.ports[domain] = EMPTY;
    this.vteps[domain] = EMPTY;
  }

  /** Domain of a VNI, -1 when unknown. */
  find(vni: number): number {
    const domain = this.byVni.get(vni);
    return domain === undefined ? -1 : domain;
  }

  addPort(domain: number, port: number): void {
    this.ports[domain] = add(this.ports[domain], port);
  }

  removePort(domain: number, port: number): void {
    this.ports[domain] = this.ports[domain].filter((member) => member !== port);
  }

  setVteps(domain: number, vteps: readonly number[]): void {
    this.vteps[domain] = Uint16Array.from(vteps);
  }
}

const EMPTY = new Uint16Array(0);

function add(members: Uint16Array, member: number): Uint16Array {
  return members.includes(member) ? members : Uint16Array.from([...members, member]);
}
