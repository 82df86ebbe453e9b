using System.Globalization;
using Megatron.Client.Cli;

// Numbers, dates and sort orders never depend on the machine: with a German locale "1.5e-3" would otherwise be read as 0.015.
CultureInfo.DefaultThreadCurrentCulture = CultureInfo.DefaultThreadCurrentUICulture = CultureInfo.InvariantCulture;
CultureInfo.CurrentCulture = CultureInfo.CurrentUICulture = CultureInfo.InvariantCulture;

// A training run takes over Ctrl-C and SIGTERM itself (Jobs/StopSignals); anything else ends at once, as the system does by default.
var console = new CommandConsole(Console.Out, Console.Error);
if (Environment.GetEnvironmentVariable("MEGATRON_COMMAND") is { Length: > 0 } command) console = console with { Program = command }; // set by the launcher
var cli = new MegatronCli(console, Environment.GetEnvironmentVariable, TimeProvider.System);
var exitCode = await cli.RunAsync(args, CancellationToken.None);
ProcessEnd.Now(exitCode);
