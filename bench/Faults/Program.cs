using System.Globalization;
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
try
{
    return await FaultsBench.RunAsync(args, Console.Out, stop.Token);
}
catch (ConfigException problem)
{
    new CommandConsole(Console.Out, Console.Error).Report(problem.Errors);
    return ExitCode.BadInput;
}
