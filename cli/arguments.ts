/** What arguments of commands are made of. */
import { CommandError, EXIT } from './output.js';

/** The canonical text of an address. @throws CommandError */
export async function canonicalIp(text: string): Promise<string> {
  const { parseIp, ValueError } = await import('../control/addresses.js');
  try {
    return parseIp(text).text;
  } catch (error) {
    if (error instanceof ValueError) throw new CommandError(`${error.message}; ${error.remedy}`, EXIT.usage);
    throw error;
  }
}
