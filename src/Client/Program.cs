using System.Globalization;
using System.Runtime.InteropServices;
using Megatron.Client.Cli;

// Numbers, dates and sort orders never depend on the machine: with a German locale "1.5e-3" would otherwise be read as 0.015.
CultureInfo.DefaultThreadCurrentCulture = CultureInfo.DefaultThreadCurrentUICulture = CultureInfo.InvariantCulture;
CultureInfo.CurrentCulture = CultureInfo.CurrentUICulture = CultureInfo.InvariantCulture;

// The first Ctrl-C or SIGTERM asks the run to save and end; the second ends the process as the system does by default.
using var stop = new CancellationTokenSource();
void RequestStop(PosixSignalContext signal)
{
    if (stop.IsCancellationRequested) return;
    signal.Cancel = true;
    stop.Cancel();
}

using var interrupt = PosixSignalRegistration.Create(PosixSignal.SIGINT, RequestStop);
using var terminate = PosixSignalRegistration.Create(PosixSignal.SIGTERM, RequestStop);
var cli = new MegatronCli(new CommandConsole(Console.Out, Console.Error), Environment.GetEnvironmentVariable, TimeProvider.System);
return await cli.RunAsync(args, stop.Token);
