using System.Globalization;
using System.Runtime.InteropServices;
using Megatron.Client.Cli;
using Megatron.Compute.Configuration;
using Megatron.Faults;

CultureInfo.DefaultThreadCurrentCulture = CultureInfo.CurrentCulture = CultureInfo.InvariantCulture;
using var stop = new CancellationTokenSource();
Console.CancelKeyPress += (_, pressed) =>
{
    pressed.Cancel = true;
    stop.Cancel(); // the processes of the scenario in hand are ended
};
using var terminated = PosixSignalRegistration.Create(PosixSignal.SIGTERM, signal =>
{
    signal.Cancel = true;
    stop.Cancel();
});
try
{
    return await FaultsBench.RunAsync(args, Console.Out, stop.Token);
}
catch (ConfigException problem)
{
    new CommandConsole(Console.Out, Console.Error).Report(problem.Errors);
    return ExitCode.BadInput;
}
