/**
 * Builds what test/support/kernel-vm.ts boots: `vmlinuz`, the kernel of Debian's cloud images, and `initramfs` with
 * busybox, ipvsadm, the modules that the tests want, and this machine's own shell, `ip`, `bridge` and `ping`. Packages
 * are fetched by apt, which checks them, and are unpacked, not installed.
 *
 * Part of setup.mjs: needs no package, only Node. x86-64 only.
 */
import fs from 'node:fs';
import path from 'node:path';

const HERE = import.meta.dirname;

/** `linux-image-cloud-amd64` stands for the kernel that it depends on. */
const PACKAGES = ['linux-image-cloud-amd64', 'busybox-static', 'ipvsadm'];

/** Modules by name, or a directory of them; what they depend on comes along. Some kernels have a few built in. */
const MODULES = [
  ...['virtio_pci', 'virtio_console', 'virtio_net', 'dummy', 'veth', 'bridge', 'vxlan', 'ipip', 'ip6_tunnel'],
  ...['esp4', 'esp6', 'xfrm_user', 'aesni_intel'],
  // All of crypto: GCM in ESP asks by name for its mode, hash, IV generator, and a random generator with all of that's.
  ...['crypto/', 'net/netfilter/ipvs/'],
];

/** Programs of this machine that go into the VM, each with the libraries that it loads. */
const PROGRAMS = ['sh', 'ip', 'bridge', 'ping'];

const PROTOCOLS = 'icmp 1\ntcp 6\nudp 17\ngre 47\nesp 50\nipv6-icmp 58\nsctp 132\n';

/** A mirror that does not answer costs seconds, not the two minutes that apt would wait for each address. */
const APT = ['Acquire::http::Timeout=20', 'Acquire::https::Timeout=20', 'Acquire::Retries=1'].flatMap(
  (option) => ['-o', option],
);

/**
 * Makes `vmlinuz` and `initramfs` in `directory`.
 * @param run runs a command: `(command, args, directory)`, returns { ok, output }
 * @param find the path of a program of this machine, or undefined
 * @throws Error that says in a few words why it cannot be done, for the title of a test; its cause is what a tool said
 */
export function buildKernelVm({ directory, run, find }) {
  const must = (what, command, args, where = directory) => {
    const { ok, output } = run(command, args, where);
    if (!ok) throw new Error(`${what} failed`, { cause: reasonIn(output) });
    return output;
  };
  const work = path.join(directory, 'work');
  const unpacked = path.join(work, 'unpacked');
  const root = path.join(work, 'root');
  fs.rmSync(work, { recursive: true, force: true });
  for (const name of ['bin', 'sbin', 'lib', 'etc', 'dev', 'proc', 'run', 'sys', 'tmp'])
    fs.mkdirSync(path.join(root, name), { recursive: true });

  const packages = fetchPackages(directory, must, run);
  for (const name of fs.readdirSync(packages).filter((file) => file.endsWith('.deb')))
    must(`unpacking ${name.split('_')[0]}`, 'dpkg-deb', ['--extract', path.join(packages, name), unpacked]);
  const inPackage = (...names) => {
    const found = names.map((name) => path.join(unpacked, name)).find((file) => fs.existsSync(file));
    if (!found) throw new Error(`the packages do not have ${names.join(' or ')}`);
    return found;
  };

  // 1. busybox, under the names of all its applets.
  const busybox = inPackage('bin/busybox', 'usr/bin/busybox');
  fs.copyFileSync(busybox, path.join(root, 'bin/busybox'));
  const own = new Set([...PROGRAMS, 'busybox']);
  for (const applet of must('busybox', busybox, ['--list']).trim().split('\n'))
    if (!own.has(applet)) fs.symlinkSync('busybox', path.join(root, 'bin', applet));
  fs.symlinkSync('../bin/busybox', path.join(root, 'sbin/modprobe')); // where the kernel looks for it

  // 2. Other programs and their libraries, and the script that is process 1.
  must('cc', 'cc', [
    '-O2',
    '-Wall',
    '-Wextra',
    '-Werror',
    '-o',
    path.join(root, 'bin/udp-encap'),
    path.join(HERE, 'udp-encap.c'),
  ]);
  fs.copyFileSync(inPackage('sbin/ipvsadm', 'usr/sbin/ipvsadm'), path.join(root, 'bin/ipvsadm'));
  for (const name of PROGRAMS) {
    const file = find(name);
    if (!file) throw new Error(`this machine has no ${name}`);
    fs.copyFileSync(file, path.join(root, 'bin', name));
  }
  const programs = [...PROGRAMS, 'ipvsadm', 'udp-encap'].map((name) => path.join(root, 'bin', name));
  copyLibraries(programs, root, unpacked, must);
  fs.copyFileSync(path.join(HERE, 'init'), path.join(root, 'init'));
  fs.writeFileSync(path.join(root, 'etc/protocols'), PROTOCOLS); // for the names that `ip xfrm` takes
  for (const file of [...programs, path.join(root, 'init')]) fs.chmodSync(file, 0o755);

  // 3. Modules.
  const modules = inPackage('lib/modules', 'usr/lib/modules');
  const [version] = fs.readdirSync(modules);
  // busybox loads compressed modules, but its depmod does not look into them.
  const compressed = fs.readdirSync(modules, { recursive: true }).filter((file) => file.endsWith('.ko.xz'));
  if (compressed.length > 0) must('unxz', busybox, ['unxz', ...compressed], modules);
  copyModules(path.join(modules, version), path.join(root, 'lib/modules', version), (at) =>
    must('depmod', busybox, ['depmod', '-b', path.resolve(at, '../../..'), version]),
  );

  // 4. What was there stays whole until its successor is.
  const archive = path.join(work, 'initramfs');
  must('cpio', 'sh', ['-c', 'find . | "$0" cpio -o -H newc >"$1"', busybox, archive], root);
  fs.renameSync(archive, path.join(directory, 'initramfs'));
  fs.renameSync(inPackage(`boot/vmlinuz-${version}`), path.join(directory, 'vmlinuz'));
  fs.rmSync(work, { recursive: true });
}

/** The line in which a tool says what is wrong: apt's first error, or else the last. */
function reasonIn(output) {
  const lines = output.trim().split('\n');
  return lines.find((line) => line.startsWith('E:')) ?? lines.at(-1);
}

/** Downloads the packages once. @returns their directory. */
function fetchPackages(directory, must, run) {
  const packages = path.join(directory, 'packages');
  const record = path.join(packages, 'wanted');
  const wanted = PACKAGES.join('\n');
  if (fs.existsSync(record) && fs.readFileSync(record, 'utf8') === wanted) return packages;
  fs.rmSync(packages, { recursive: true, force: true });
  fs.mkdirSync(packages, { recursive: true });

  const dependencies = (name) =>
    [...run('apt-cache', ['depends', name], directory).output.matchAll(/^ +Depends: (\S+)$/gm)].map(
      ([, dependency]) => dependency,
    );
  const download = () => {
    const kernel = dependencies('linux-image-cloud-amd64').find((name) => name.startsWith('linux-image-'));
    if (!kernel) throw new Error('apt-cache: there is no package linux-image-cloud-amd64');
    const libraries = dependencies('ipvsadm').filter((name) => name.startsWith('lib') && name !== 'libc6');
    const names = [kernel, ...PACKAGES.slice(1), ...libraries];
    must('apt-get download', 'apt-get', [...APT, 'download', ...names], packages);
  };
  try {
    download();
  } catch (error) {
    // The lists of packages may be old, or not there at all; only root can renew them.
    if (process.getuid() !== 0) throw error;
    must('apt-get update', 'apt-get', [...APT, '-o', 'DPkg::Lock::Timeout=300', 'update']);
    download();
  }
  fs.writeFileSync(record, wanted);
  return packages;
}

/** Copies what the programs load: libraries to /lib, which init tells the loader, and the loader to where it must be. */
function copyLibraries(programs, root, unpacked, must) {
  const folders = ['lib', 'usr/lib'].flatMap((name) => [name, `${name}/x86_64-linux-gnu`]);
  const search = folders.map((name) => path.join(unpacked, name)).join(':');
  const output = must('ldd', 'env', [`LD_LIBRARY_PATH=${search}`, 'ldd', ...programs]);
  const [missing] = /\S+ => not found/.exec(output) ?? [];
  if (missing) throw new Error(`ldd: ${missing}`);
  for (const [, arrow, file] of output.matchAll(/^\s+(\S+ => )?(\/\S+) \(0x/gm)) {
    const target = path.join(root, arrow ? path.join('lib', path.basename(file)) : file);
    fs.mkdirSync(path.dirname(target), { recursive: true });
    fs.copyFileSync(file, target);
  }
}

/** Copies the wanted modules and what they depend on; the index of what there is then is made anew. */
function copyModules(source, target, depmod) {
  depmod(source);
  const dependencies = new Map(
    fs
      .readFileSync(path.join(source, 'modules.dep'), 'utf8')
      .trim()
      .split('\n')
      .map((line) => line.split(':'))
      .map(([file, rest]) => [file, rest.split(' ').filter(Boolean)]),
  );
  const nameOf = (file) => path.basename(file, '.ko').replaceAll('-', '_');
  const wanted = (file) =>
    MODULES.some((item) => (item.endsWith('/') ? file.startsWith(`kernel/${item}`) : item === nameOf(file)));
  const found = new Set([...dependencies.keys()].filter(wanted));
  for (const file of found) for (const dependency of dependencies.get(file) ?? []) found.add(dependency);
  for (const file of [...found, 'modules.builtin', 'modules.order']) {
    fs.mkdirSync(path.join(target, path.dirname(file)), { recursive: true });
    fs.copyFileSync(path.join(source, file), path.join(target, file));
  }
  depmod(target);
}
