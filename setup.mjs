#!/usr/bin/env node
// Makes a machine with Node and nothing else ready to run Weft (Debian 12 or a relative of it):
//   node setup.mjs               what `npm start` needs
//   node setup.mjs --test        and what `npm test` needs on top
//   node setup.mjs --build-only  only what compiling needs
// Every step looks first and does nothing when nothing is to be done. Needs no package, only Node.
// Talk goes to stderr, one line a step; the output of the tools goes to dist/.setup/setup.log.
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const ROOT = path.dirname(fileURLToPath(import.meta.url));
const STATE = path.join(ROOT, 'dist', '.setup');
const LOG = path.join(STATE, 'setup.log');
const NODE_PREFIX = path.dirname(path.dirname(fs.realpathSync(process.execPath)));
const NODE_INCLUDE = path.join(NODE_PREFIX, 'include/node');
// npm puts node_modules/.bin in front of PATH, where a package's `nft` would pass for the nftables tool.
const TOOL_PATH = [
  path.dirname(process.execPath),
  ...(process.env.PATH ?? '').split(':').filter((dir) => dir && !dir.includes('node_modules')),
  ...['/usr/local/sbin', '/usr/sbin', '/sbin', '/usr/bin', '/bin'],
];

const findTool = (name) => TOOL_PATH.map((dir) => path.join(dir, name)).find((file) => fs.existsSync(file));
const onPath = (name) => findTool(name) !== undefined;
const header = (name) => fs.existsSync(path.join('/usr/include', name));

/** Debian package → whether what we want of it is there; asked of the machine, not of dpkg. */
const PACKAGES = {
  compile: {
    gcc: () => onPath('cc') && onPath('gcc'),
    'libc6-dev': () => header('stdio.h') && header('linux/if_tun.h'),
    // These four are for node-gyp, which builds the optional packages cap and raw-socket.
    'g++': () => onPath('g++'),
    make: () => onPath('make'),
    python3: () => onPath('python3'),
    'libpcap-dev': () => header('pcap/pcap.h'),
  },
  run: {
    iproute2: () => onPath('ip') && onPath('bridge'),
    'iputils-ping': () => onPath('ping'),
    iperf3: () => onPath('iperf3'),
    nftables: () => onPath('nft'),
    'util-linux': () => onPath('nsenter') && onPath('flock'),
  },
  test: {
    tshark: () => onPath('tshark'),
    tcpdump: () => onPath('tcpdump'),
    socat: () => onPath('socat'),
    'python3-scapy': () => pythonHas('scapy'),
    ethtool: () => onPath('ethtool'),
    procps: () => onPath('ps') && onPath('sysctl'),
    // What users would run through a gateway. None of these is started as a service; nginx is: prepareNginx.
    curl: () => onPath('curl'),
    'dnsmasq-base': () => onPath('dnsmasq'),
    ldnsutils: () => onPath('drill'),
    'python3-pyftpdlib': () => pythonHas('pyftpdlib'),
    traceroute: () => onPath('traceroute'),
  },
  // AES-GCM at its fastest; the addon does without. Debian has it for amd64 only.
  crypto: process.arch === 'x64' ? { 'libipsec-mb-dev': () => ipsecMbFlags().length > 0 } : {},
  // For the tests with a kernel in a VM, which are skipped without it.
  vm: { 'qemu-system-x86': () => onPath('qemu-system-x86_64') },
};

/** Importing scapy takes most of a second, so look for Debian's own file before asking Python. */
function pythonHas(name) {
  if (fs.existsSync(`/usr/lib/python3/dist-packages/${name}/__init__.py`)) return true;
  return spawnSync('/usr/bin/python3', ['-c', `import ${name}`], { stdio: 'ignore' }).status === 0;
}

const say = (text) => process.stderr.write(`setup: ${text}\n`);

function fail(text) {
  say(text);
  process.exit(1);
}

/** Runs a command with its output in the log. @returns { ok, output } */
function run(command, args, env = process.env, cwd = ROOT) {
  const result = spawnSync(command, args, {
    cwd,
    env: { ...env, PATH: TOOL_PATH.join(':') },
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'pipe'],
    maxBuffer: 1 << 28,
  });
  const output = `${result.stdout ?? ''}${result.stderr ?? ''}${result.error ? `${result.error.message}\n` : ''}`;
  fs.appendFileSync(LOG, `$ ${[command, ...args].join(' ')}\n${output}`);
  return { ok: result.status === 0, output };
}

const tail = (text, lines) => text.trimEnd().split('\n').slice(-lines).join('\n');
const readJson = (file) => JSON.parse(fs.readFileSync(path.join(ROOT, file), 'utf8'));

/** A digest of texts and of the content of files, by which a step knows that nothing changed. */
function digest(texts, files = []) {
  const hash = createHash('sha256');
  for (const text of texts) hash.update(`${text}\0`);
  for (const file of files) hash.update(`${file}\0`).update(fs.readFileSync(path.join(ROOT, file)));
  return hash.digest('hex');
}

function stamped(file, value) {
  try {
    return fs.readFileSync(file, 'utf8') === value;
  } catch {
    return false;
  }
}

/** Files below a directory of the repository that end in `suffix`, sorted, relative to its root. */
function filesBelow(directory, suffix) {
  if (!fs.existsSync(path.join(ROOT, directory))) return [];
  return fs
    .readdirSync(path.join(ROOT, directory), { recursive: true })
    .filter((name) => name.endsWith(suffix))
    .map((name) => path.join(directory, name))
    .sort();
}

// --- 0. One setup at a time -------------------------------------------------------------------------------

/** The kernel drops a flock when its last descriptor closes, so a setup that dies leaves no stale lock. */
function lock() {
  fs.mkdirSync(STATE, { recursive: true });
  const tool = findTool('flock');
  if (!tool) return; // then util-linux is missing, and installed below
  const fd = fs.openSync(path.join(STATE, 'lock'), 'a');
  const flock = (...args) => {
    const stdio = ['ignore', 'ignore', 'ignore', fd];
    return spawnSync(tool, [...args, '3'], { stdio, env: { PATH: TOOL_PATH.join(':') } });
  };
  if (flock('--nonblock').status === 0) return;
  say('waiting for another setup of this clone to finish');
  if (flock('--timeout', '1800').status !== 0) fail(`another setup has held ${STATE}/lock for half an hour`);
}

// --- 1. The machine ---------------------------------------------------------------------------------------

/** Understands what package.json's engines uses: `^X.Y` and `>=X.Y`, joined by `||`. */
function nodeSatisfies(range, version = process.versions.node) {
  const [major, minor] = version.split('.').map(Number);
  return range.split('||').some((alternative) => {
    const match = /^\s*(\^|>=)(\d+)\.(\d+)\s*$/.exec(alternative);
    if (!match) throw new Error(`package.json: engines.node: cannot read "${alternative.trim()}"`);
    const wantMajor = Number(match[2]);
    if (major !== wantMajor) return match[1] === '>=' && major > wantMajor;
    return minor >= Number(match[3]);
  });
}

function checkMachine() {
  if (process.platform !== 'linux')
    fail(`Weft runs on Linux (TAP devices, namespaces); this is ${process.platform}`);
  const range = readJson('package.json').engines.node;
  if (!nodeSatisfies(range))
    fail(`Node ${process.version} does not do: Weft needs ${range} (see https://nodejs.org)`);
}

/** @returns why packages of the groups are still missing, or undefined when all are there. */
function installDebianPackages(groups) {
  const missing = () =>
    groups.flatMap((group) => Object.keys(PACKAGES[group]).filter((name) => !PACKAGES[group][name]()));
  const wanted = missing();
  if (wanted.length === 0) return undefined;
  const command = `apt-get install -y --no-install-recommends ${wanted.join(' ')}`;
  if (!onPath('apt-get'))
    return `missing on this machine: what Debian has in ${wanted.join(', ')}; please install it`;
  if (process.getuid() !== 0)
    return `packages are missing and only root can install them; please run: sudo apt-get update && sudo ${command}`;

  say(`installing Debian packages: ${wanted.join(' ')}`);
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' };
  const wait = ['-o', 'DPkg::Lock::Timeout=300'];
  const update = run('apt-get', [...wait, 'update'], env);
  const install = run('apt-get', [...wait, ...command.split(' ').slice(1)], env);
  const left = missing();
  if (install.ok && left.length === 0) return undefined;
  const why = `${update.ok ? '' : update.output}${install.output}`
    .split('\n')
    .filter((line) => /^[EW]:/.test(line));
  return (
    `could not install ${(left.length > 0 ? left : wanted).join(', ')} (all of it: ${LOG})\n${why.join('\n')}\n` +
    `setup: to see for yourself: apt-get update && ${command}`
  );
}

/** Packages that must be there, and with them those that had better be, for which it asks once. */
function installAll(groups) {
  const note = path.join(STATE, 'without-ipsec-mb');
  const optional = fs.existsSync(note) ? [] : ['crypto'];
  const why = installDebianPackages([...groups, ...optional]);
  if (!why) return;
  const missing = optional.length > 0 ? installDebianPackages(groups) : why;
  if (missing) fail(missing);
  say(`encryption will use OpenSSL, at a fifth of libipsec-mb's speed: ${why}`);
  fs.writeFileSync(note, why);
}

// --- 2. npm packages --------------------------------------------------------------------------------------

const NPM_STAMP = path.join(ROOT, 'node_modules', '.weft-setup');
// How to reach the registry stays as the user set it. Nothing else of npm's passes: `npm start --omit=dev` or a
// `--dry-run` would reach the inner npm through the environment.
const NPM_KEEP =
  /^npm_config_(registry|cache|userconfig|globalconfig|.*proxy|ca|cafile|cert|key|strict_ssl|.*offline|fetch_.*|python|\/\/.*|@.*)$/i;

/** The npm that started us, or else the first on PATH, or else the one beside the running node. */
function findNpm() {
  const started = process.env.npm_execpath ?? '';
  for (const candidate of [started, ...TOOL_PATH.map((dir) => path.join(dir, 'npm'))]) {
    if (!candidate || !fs.existsSync(candidate)) continue;
    const script = fs.realpathSync(candidate);
    if (path.basename(script) === 'npm-cli.js') return script;
  }
  return fail('npm is missing: install it (it comes with Node from nodejs.org or NodeSource) and run again');
}

function npm(...args) {
  const script = findNpm();
  const env = {};
  for (const [name, value] of Object.entries(process.env)) {
    const dropped =
      (/^npm_/i.test(name) && !NPM_KEEP.test(name)) || name === 'NODE_ENV' || (name === 'HOME' && !value);
    if (!dropped) env[name] = value;
  }
  if (fs.existsSync(path.join(NODE_INCLUDE, 'node_api.h'))) {
    // node-gyp would otherwise fetch Node's headers from the net. npm 10 knows only the first name, npm 12 warns of it.
    const { version } = JSON.parse(
      fs.readFileSync(path.join(path.dirname(script), '../package.json'), 'utf8'),
    );
    const old = Number(version.split('.')[0]) < 11;
    env[old ? 'npm_config_nodedir' : 'npm_package_config_node_gyp_nodedir'] = NODE_PREFIX;
  }
  return run(process.execPath, [script, ...args], env);
}

/** Whether node_modules, as npm recorded it, holds what the lock file asks for, by whatever npm command. */
function nodeModulesMatch(lockFile) {
  const record = path.join('node_modules', '.package-lock.json');
  if (!fs.existsSync(path.join(ROOT, record))) return false;
  const there = readJson(record).packages;
  return Object.entries(lockFile.packages).every(
    ([name, entry]) =>
      name === '' || (there[name] ? there[name].version === entry.version : entry.optional === true),
  );
}

/**
 * npm 11's `ci` refuses a lock file written where the registry lacks some other platform's optional package. It then
 * names no version, as in "Missing: x@ from lock file"; `install` takes the locked versions and leaves those out.
 */
function onlyOtherPlatformsMissing(output) {
  const complaints = output.match(/^npm error (Missing|Invalid): .*/gm) ?? [];
  return complaints.length > 0 && complaints.every((line) => line.endsWith('@ from lock file'));
}

const built = (name) => filesBelow(path.join('node_modules', name, 'build', 'Release'), '.node').length > 0;

function installNpmPackages() {
  const lockFile = readJson('package-lock.json');
  const abi = `${process.arch} ${process.versions.modules} `;
  const stamp = abi + digest([], ['package-lock.json']);
  if (stamped(NPM_STAMP, stamp)) return;
  const otherNode = fs.existsSync(NPM_STAMP) && !fs.readFileSync(NPM_STAMP, 'utf8').startsWith(abi);
  const optional = Object.keys(readJson('package.json').optionalDependencies ?? {});
  if (otherNode || !nodeModulesMatch(lockFile) || !optional.every(built)) {
    say('installing npm packages');
    const all = ['--include=dev', '--include=optional', '--ignore-scripts=false', '--no-audit', '--no-fund'];
    let install = npm('ci', ...all);
    if (!install.ok && onlyOtherPlatformsMissing(install.output))
      install = npm('install', '--no-save', ...all);
    if (!install.ok)
      fail(`npm could not install the packages (all of it: ${LOG})\n${tail(install.output, 20)}`);
  }
  for (const name of optional) {
    // Installed but not built: an npm that blocks install scripts.
    if (!built(name) && fs.existsSync(path.join(ROOT, 'node_modules', name))) npm('rebuild', name);
    if (!built(name))
      say(`the optional package ${name} does not build here, Weft runs without it (why: ${LOG})`);
  }
  fs.writeFileSync(NPM_STAMP, stamp);
}

// --- 3. The addon -----------------------------------------------------------------------------------------

const C_FLAGS =
  '-std=gnu11 -O3 -Wall -Wextra -Werror -Wshadow -Wconversion -Wno-sign-conversion ' +
  '-fPIC -shared -fvisibility=hidden -pthread -DNAPI_VERSION=8';

/** Linked statically, with its symbols kept inside: where the addon runs, the package need not be. */
function ipsecMbFlags() {
  if (process.arch !== 'x64' || !header('intel-ipsec-mb.h')) return [];
  const compiler = process.env.CC || 'cc';
  const env = { ...process.env, PATH: TOOL_PATH.join(':') };
  const { stdout } = spawnSync(compiler, ['-print-file-name=libIPSec_MB.a'], { encoding: 'utf8', env });
  const archive = stdout?.trim() ?? '';
  return path.isAbsolute(archive) ? ['-DWEFT_IPSEC_MB', archive, '-Wl,--exclude-libs,ALL'] : [];
}

function buildAddon() {
  const sources = filesBelow('native-bindings/src', '.c');
  const headers = filesBelow('native-bindings/src', '.h');
  const compiler = process.env.CC || 'cc';
  const extra = (process.env.CFLAGS ?? '').split(' ').filter(Boolean); // for sanitizers, say
  const ipsecMb = ipsecMbFlags();
  const output = path.join(ROOT, 'native-bindings/build/weft.node');
  const stampFile = `${output}.stamp`;
  const stamp = digest(
    [process.version, process.arch, NODE_PREFIX, compiler, ...extra, ...ipsecMb],
    ['setup.mjs', ...sources, ...headers],
  );
  if (fs.existsSync(output) && stamped(stampFile, stamp)) return;

  if (sources.length === 0) fail('native-bindings/src holds no C file: this clone is not complete');
  if (!fs.existsSync(path.join(NODE_INCLUDE, 'node_api.h'))) {
    fail(
      `${NODE_INCLUDE}/node_api.h is missing. It comes with the nodejs package of NodeSource, the node:* images and ` +
        `node-${process.version}-linux-${process.arch}.tar.xz of nodejs.org; unpack that one and use its bin/node`,
    );
  }
  say('compiling the addon');
  fs.mkdirSync(path.dirname(output), { recursive: true });
  // A running process maps the old file: build beside it and rename, never write into it.
  const fresh = `${output}.${process.pid}`;
  const compile = run(compiler, [
    ...C_FLAGS.split(' '),
    ...extra,
    `-I${NODE_INCLUDE}`,
    '-o',
    fresh,
    ...sources,
    ...ipsecMb,
  ]);
  if (!compile.ok) {
    fs.rmSync(fresh, { force: true });
    fail(`the addon does not compile\n${compile.output.trimEnd()}`);
  }
  fs.renameSync(fresh, output);
  fs.writeFileSync(stampFile, stamp);
}

// --- 4. TypeScript ----------------------------------------------------------------------------------------

const BUILD_INFO = path.join(ROOT, 'dist/.tsbuildinfo');
const outputOf = (source) => path.join('dist', source.replace(/\.ts$/, '.js'));

/** A test whose source is gone must not run on from dist. */
function removeStaleOutputs() {
  for (const map of filesBelow('dist', '.js.map')) {
    const script = map.slice(0, -'.map'.length);
    const source = path.relative('dist', script).replace(/\.js$/, '.ts');
    if (fs.existsSync(path.join(ROOT, source))) continue;
    for (const file of [script, map]) fs.rmSync(path.join(ROOT, file), { force: true });
  }
}

function compileTypeScript() {
  const sources = readJson('tsconfig.json').include.flatMap((directory) => filesBelow(directory, '.ts'));
  const outputs = sources.filter((source) => !source.endsWith('.d.ts')).map(outputOf);
  const stampFile = path.join(STATE, 'typescript');
  const stamp = digest(['typescript'], ['tsconfig.json', 'package-lock.json', ...sources]);
  const complete = outputs.every((file) => fs.existsSync(path.join(ROOT, file)));
  if (complete && stamped(stampFile, stamp)) return;

  say('compiling TypeScript');
  // The incremental state believes that what it once wrote is still there.
  if (!complete) fs.rmSync(BUILD_INFO, { force: true });
  const compile = run(path.join(ROOT, 'node_modules/.bin/tsc'), []);
  removeStaleOutputs();
  if (!compile.ok) fail(`TypeScript does not compile\n${compile.output.trimEnd()}`);
  fs.writeFileSync(stampFile, stamp);
}

// --- 5. A kernel for tests --------------------------------------------------------------------------------

/** Debian's kernel and what it boots with. The tests that need it say in their titles why it is not there. */
async function prepareKernelVm() {
  const directory = path.join(STATE, 'kernel-vm');
  const [reasonFile, stampFile] = ['reason', 'stamp'].map((name) => path.join(directory, name));
  fs.mkdirSync(directory, { recursive: true });
  try {
    if (process.arch !== 'x64') throw new Error(`it is for x86-64, this machine is ${process.arch}`);
    const missing = installDebianPackages(['vm']);
    if (missing) throw new Error('qemu-system-x86 is missing', { cause: missing });
    const sources = ['init', 'prepare.mjs', 'udp-encap.c'].map((name) => `test/support/kernel-vm/${name}`);
    const stamp = digest([], sources);
    if (!stamped(stampFile, stamp)) {
      say('preparing a VM with a kernel of Debian for tests');
      const { buildKernelVm } = await import('./test/support/kernel-vm/prepare.mjs');
      const runIn = (command, args, cwd) => run(command, args, process.env, cwd);
      buildKernelVm({ directory, run: runIn, find: findTool });
      fs.writeFileSync(stampFile, stamp);
    }
    fs.rmSync(reasonFile, { force: true });
  } catch (error) {
    const said = error.cause ? ` (all of it: ${LOG})\n${error.cause}` : '';
    say(`tests with a kernel in a VM will be skipped: ${error.message}${said}`);
    fs.writeFileSync(reasonFile, error.message);
  }
}

// --- 6. nginx for tests -----------------------------------------------------------------------------------

/** Unpacked and not installed: Debian's package would start a web server here, and at every boot. */
function prepareNginx() {
  if (onPath('nginx')) return;
  const directory = path.join(STATE, 'nginx');
  const program = path.join(directory, 'usr/sbin/nginx');
  const runs = () => fs.existsSync(program) && run(program, ['-e', 'stderr', '-v']).ok;
  if (runs()) return;
  say('fetching nginx for tests');
  fs.rmSync(directory, { recursive: true, force: true });
  fs.mkdirSync(directory, { recursive: true });
  const download = () => run('apt-get', ['download', 'nginx'], process.env, directory);
  if (!download().ok && run('apt-get', ['update']).ok) download();
  const found = fs.readdirSync(directory).find((name) => name.endsWith('.deb'));
  if (found) run('dpkg-deb', ['--extract', path.join(directory, found), directory]);
  if (!runs()) say(`tests with nginx will be skipped (why: ${LOG})`);
}

// ----------------------------------------------------------------------------------------------------------

const MODES = { '': ['compile', 'run'], '--test': ['compile', 'run', 'test'], '--build-only': ['compile'] };

const [mode = '', ...rest] = process.argv.slice(2);
if (!(mode in MODES) || rest.length > 0) {
  process.stderr.write('usage: node setup.mjs [--test | --build-only]\n');
  process.exit(2);
}
try {
  checkMachine();
  lock();
  installAll(MODES[mode]);
  installNpmPackages();
  buildAddon();
  compileTypeScript();
  if (mode === '--test') {
    await prepareKernelVm();
    prepareNginx();
  }
} catch (error) {
  if (error.code !== 'EACCES' && error.code !== 'EROFS') throw error;
  fail(`cannot write ${error.path}: run this as the user who owns ${ROOT}`);
}
