/** The program behind `npm run bench:live`. */
import { CommanderError } from 'commander';
import { CommandError, EXIT, say } from '../../cli/output.js';
import { liveCommand } from './command.js';

try {
  await liveCommand().name('npm run bench:live --').exitOverride().parseAsync(process.argv);
} catch (error) {
  if (error instanceof CommanderError) process.exitCode = error.exitCode === 0 ? EXIT.done : EXIT.usage;
  else if (error instanceof CommandError) {
    say(error.message);
    process.exitCode = error.exitCode;
  } else throw error;
}
