/**
 * A Debian kernel in a VM, as a host of a lab that has what this machine's kernel may lack: ESP (`ip xfrm`) and IPVS
 * (`ipvsadm`). `node setup.mjs --test` builds what is booted (kernel-vm/prepare.mjs). It needs no KVM: qemu translates
 * the instructions, so that the VM is up within some seconds and right, not fast.
 *
 * Commands go through a virtio serial port to kernel-vm/init, which runs them one after another. When this process is
 * gone, however it ended, the port closes and the VM switches itself off.
 */
import type { StdioOptions } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import type { Duplex } from 'node:stream';
import { fileURLToPath } from 'node:url';
import {
  CommandError,
  type CommandResult,
  Lab,
  type Namespace,
  type RunningCommand,
  type RunOptions,
  toolEnvironment,
} from '../../cli/lab.js';
import { linkOf, type Mesh, underlayAddress } from './live.js';

const QEMU = 'qemu-system-x86_64';
const BUILT = fileURLToPath(new URL('../../.setup/kernel-vm/', import.meta.url));
const MEMORY_MIB = 256;
const BOOT_MS = 60_000;
const DEFAULT_TIMEOUT_MS = 30_000;
/** How much longer than the VM, which has its own clock, we wait before we give it up. */
const GRACE_MS = 15_000;

export interface KernelVmOptions {
  /** Namespace at the other end of the VM's cable. */
  readonly namespace: Namespace;
  /** TAP that is made there and stays as long as the namespace; `vm0` unless told. */
  readonly tap?: string;
  /** Bridge of the namespace that the TAP joins, such as br0 of `Lab.bridgeUnderlay`. */
  readonly bridge?: string;
  /** Addresses of `eth0` in the VM, with prefix length. */
  readonly addresses?: readonly string[];
  /** Bytes, at both ends; 1500 unless told. */
  readonly mtu?: number;
  /** Of `eth0`; 52:54:00:00:00:01 unless told, so that of two VMs on one segment one must be. */
  readonly mac?: string;
  /** Modules to load at once. Most load themselves when they are needed; those that can be are in prepare.mjs. */
  readonly modules?: readonly string[];
}

export interface VxlanOfVm {
  readonly vni: number;
  /** VTEPs, IPv4 or IPv6. */
  readonly local: string;
  readonly remote: string;
  /** Addresses in the overlay, with prefix length. */
  readonly addresses: readonly string[];
  readonly mac: string;
  /** Bytes. */
  readonly mtu: number;
  /** UDP port; 4789 unless told. */
  readonly port?: number;
}

export class KernelVm {
  readonly label = 'vm';
  readonly #qemu: RunningCommand;
  readonly #port: Duplex;
  readonly #waiting = new Map<string, (result: CommandResult) => void>();
  /** Rejects when the VM is gone, and tells why. */
  readonly #gone: Promise<never>;
  #queue: Promise<unknown> = Promise.resolve();
  #sent = 0;
  #received = '';
  #closed = false;

  private constructor(qemu: RunningCommand) {
    this.#qemu = qemu;
    this.#port = qemu.child.stdio[3] as Duplex;
    this.#port.setEncoding('latin1').on('data', (chunk: string) => this.#receive(chunk));
    this.#port.on('error', () => {}); // the VM's end is told by qemu's
    this.#gone = qemu.ended.then(({ code, stderr }) => {
      const why = this.#closed ? 'it is closed' : `qemu ended with code ${code}`;
      throw new CommandError(this.label, code, stderr, `${why}\n${this.console.slice(-2000)}`);
    });
    this.#gone.catch(() => {}); // those who wait for something hear of it
  }

  /** Why there can be no VM here, or undefined when there can. */
  static unavailable(): string | undefined {
    const reason = Lab.unavailable();
    if (reason) return reason;
    if (!existsSync('/dev/net/tun')) return 'it needs /dev/net/tun';
    if (existsSync(`${BUILT}reason`)) return `no VM: ${readFileSync(`${BUILT}reason`, 'utf8')}`;
    if (!existsSync(`${BUILT}stamp`)) return 'it needs the VM that node setup.mjs --test prepares';
    const directories = (toolEnvironment()['PATH'] ?? '').split(':');
    if (!directories.some((directory) => existsSync(`${directory}/${QEMU}`))) return `it needs ${QEMU}`;
    return undefined;
  }

  /** Boots a VM and gives it its addresses. @throws CommandError with what its console said. */
  static async boot(options: KernelVmOptions): Promise<KernelVm> {
    const { namespace, tap = 'vm0', bridge, addresses = [], mtu = 1500, modules = [] } = options;
    const { mac = '52:54:00:00:00:01' } = options;
    // A TAP of its own rather than one that qemu makes: it is up, and on its bridge, before the VM's first frame.
    namespace.ipBatch([
      `tuntap add dev ${tap} mode tap vnet_hdr`,
      `link set dev ${tap} mtu ${mtu}${bridge ? ` master ${bridge}` : ''} up`,
    ]);
    // The console, qemu's complaints, and the port for commands: node makes it a socket, whose other end is qemu's.
    const stdio: StdioOptions = ['ignore', 'pipe', 'pipe', 'pipe'];
    const vm = new KernelVm(namespace.start(QEMU, qemuArguments(tap, mac), { stdio }));
    try {
      await vm.#answer('ready', BOOT_MS);
      const keys = ['all.accept_dad', 'default.accept_dad', 'default.router_solicitations'];
      await vm.sh(
        [
          ...keys.map((key) => `sysctl -q -w net.ipv6.conf.${key}=0`),
          `ip link set eth0 mtu ${mtu} up`,
          ...addresses.map((a) => `ip addr add ${a} dev eth0${a.includes(':') ? ' nodad' : ''}`),
          ...(modules.length > 0 ? [`modprobe -a ${modules.join(' ')}`] : []),
        ].join(' &&\n'),
      );
      return vm;
    } catch (error) {
      await vm.close();
      throw error;
    }
  }

  /** Puts a VM in the place of host `n` of a mesh, with its addresses and its MAC. @throws CommandError */
  static async asHost(mesh: Mesh, n: number, modules: readonly string[] = []): Promise<KernelVm> {
    const host = mesh.hosts[n - 1];
    const { address: mac, mtu } = linkOf(host, 'under0')!;
    host.ip('link', 'set', 'under0', 'down');
    const addresses = [`${underlayAddress(n, false)}/24`, `${underlayAddress(n, true)}/64`];
    return KernelVm.boot({
      namespace: mesh.switch,
      bridge: 'br0',
      tap: `vm${n}`,
      addresses,
      mtu,
      mac,
      modules,
    });
  }

  /** What the kernel has said so far. */
  get console(): string {
    return this.#qemu.stdout;
  }

  /** Runs a command to its end, whatever its exit code. @throws CommandError when it takes too long, or the VM ends. */
  async exec(
    command: string,
    args: readonly string[] = [],
    options: RunOptions = {},
  ): Promise<CommandResult> {
    return this.#exec([command, ...args].map(quoted).join(' '), options);
  }

  /** Runs a command that must succeed and returns its stdout. @throws CommandError on another code than 0. */
  async run(command: string, args: readonly string[] = [], options: RunOptions = {}): Promise<string> {
    return this.#succeed([command, ...args].join(' '), await this.exec(command, args, options));
  }

  /**
   * Runs a shell script, which must succeed, and returns its stdout. With `&` and output to a file, a command goes on
   * behind it. @throws CommandError on another code than 0.
   */
  async sh(script: string, options: RunOptions = {}): Promise<string> {
    return this.#succeed(script, await this.#exec(script, options));
  }

  /** Many `ip` commands in one process; stops at the first that fails. @throws CommandError, without the commands. */
  async ipBatch(lines: readonly string[]): Promise<void> {
    await this.run('ip', ['-batch', '-'], { input: `${lines.join('\n')}\n` });
  }

  /**
   * Makes `vxlan<vni>`, by which the VM itself is a host of an overlay. Without an IPv6 address it has no link-local one
   * either, and sends nothing of its own accord. @throws CommandError
   */
  async vxlan(options: VxlanOfVm): Promise<void> {
    const { vni, local, remote, addresses, mac, mtu, port = 4789 } = options;
    const device = `vxlan${vni}`;
    await this.ipBatch([
      `link add ${device} address ${mac} mtu ${mtu} type vxlan id ${vni} local ${local} remote ${remote} dstport ${port}`,
      ...(addresses.some((a) => a.includes(':')) ? [] : [`link set ${device} addrgenmode none`]),
      ...addresses.map((a) => `addr add ${a} dev ${device}${a.includes(':') ? ' nodad' : ''}`),
      `link set ${device} up`,
    ]);
  }

  /** Ends the VM at once. A second call does nothing. */
  async close(): Promise<void> {
    this.#closed = true;
    this.#qemu.child.kill('SIGKILL');
    await this.#qemu.ended;
  }

  /** One script at a time is the VM's business, so that a time limit begins with its own. */
  #exec(script: string, { input = '', timeoutMs = DEFAULT_TIMEOUT_MS }: RunOptions): Promise<CommandResult> {
    const turn = this.#queue.then(() => this.#send(script, input, timeoutMs));
    this.#queue = turn.catch(() => {});
    return turn;
  }

  async #send(script: string, input: string, timeoutMs: number): Promise<CommandResult> {
    const id = String(++this.#sent);
    const answer = this.#answer(id, timeoutMs + GRACE_MS);
    const [script64, input64] = [script, input].map((text) => Buffer.from(text).toString('base64'));
    this.#port.write(`${id} ${Math.ceil(timeoutMs / 1000)} ${script64} ${input64}\n`);
    const result = await answer;
    // `timeout` kills with SIGKILL; so may others, which is as bad.
    if (result.code === 137)
      throw new CommandError(
        `vm: ${script}`,
        137,
        result.stderr,
        `killed, after ${timeoutMs} ms if it was late`,
      );
    return result;
  }

  /** Waits for the answer of this id; a VM that does not give it is done for. */
  async #answer(id: string, timeoutMs: number): Promise<CommandResult> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => {
        const reason = `no answer within ${timeoutMs} ms\n${this.console.slice(-2000)}`;
        reject(new CommandError(this.label, undefined, this.#qemu.stderr, reason));
        void this.close();
      }, timeoutMs);
    });
    const result = new Promise<CommandResult>((resolve) => this.#waiting.set(id, resolve));
    try {
      return await Promise.race([result, this.#gone, late]);
    } finally {
      clearTimeout(timer);
      this.#waiting.delete(id);
    }
  }

  #receive(chunk: string): void {
    const lines = (this.#received + chunk).split('\n');
    this.#received = lines.pop() ?? '';
    for (const line of lines) {
      const [id = '', code, stdout = '', stderr = ''] = line.split(' ');
      const text = (base64: string) => Buffer.from(base64, 'base64').toString();
      this.#waiting.get(id)?.({ code: Number(code), stdout: text(stdout), stderr: text(stderr) });
    }
  }

  #succeed(text: string, { code, stdout, stderr }: CommandResult): string {
    if (code === 0) return stdout;
    throw new CommandError(`${this.label}: ${text}`, code, stderr || stdout, `exit code ${code}`);
  }
}

function qemuArguments(tap: string, mac: string): string[] {
  return [
    ...['-nodefaults', '-no-user-config', '-no-reboot', '-display', 'none'],
    // Without what the kernel would use to guard itself, which costs a translator most.
    ...['-machine', 'q35,accel=tcg', '-cpu', 'max,-smap,-smep,-umip,-pku,-la57'],
    ...['-smp', '1', '-m', `${MEMORY_MIB}`],
    ...['-kernel', `${BUILT}vmlinuz`, '-initrd', `${BUILT}initramfs`],
    // A panic ends the VM, and so what waits for it.
    ...['-append', 'console=ttyS0 quiet panic=-1 mitigations=off'],
    ...['-serial', 'stdio'],
    ...['-chardev', 'socket,id=commands,fd=3', '-device', 'virtio-serial-pci'],
    ...['-device', 'virtserialport,chardev=commands,name=weft'],
    ...['-netdev', `tap,id=net,ifname=${tap},script=no,downscript=no`],
    ...['-device', `virtio-net-pci,netdev=net,mac=${mac},romfile=`],
  ];
}

const quoted = (word: string): string => `'${word.replaceAll("'", `'\\''`)}'`;
