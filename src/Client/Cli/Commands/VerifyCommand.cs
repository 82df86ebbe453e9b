using System.Globalization;
using Megatron.Compute.Distributed;
using Megatron.Compute.Native;
using Megatron.Compute.Training;
using Spectre.Console;

namespace Megatron.Client.Cli.Commands;

/// <summary>
/// <c>megatron verify</c>: comparison with a golden folder, the ranks being threads of this process or, when NNODES is above 1, of one process on
/// every node, which meet at MASTER_ADDR and talk over TCP, or by NCCL with <c>--device cuda</c>.
/// </summary>
/// <param name="console">Where to print.</param>
public sealed class VerifyCommand(CommandConsole console) : IVerbCommand
{
    /// <inheritdoc/>
    public Task<int> RunAsync(ParsedOptions options, CancellationToken cancellationToken)
    {
        var placement = options.Environment.Placement(options.Verb, options.Config.DistributedBackend, options.Config.Device);
        var worldSize = options.Environment.WorldSize;
        var environment = RankEnvironment.InProcess(new LibTorchOptions { Folder = options.Environment.LibTorch }, TimeProvider.System, placement?.RanksPerNode ?? worldSize);
        if (placement is not null) environment = environment with { ThreadsPerRank = Math.Max(1, Environment.ProcessorCount / placement.RanksOnThisMachine) };
        LibTorch.Load(environment.LibTorch);
        try
        {
            var checks = placement is null
                ? GoldenRun.Run(options.Config, worldSize, environment)
                : GoldenRun.RunNode(options.Config, placement, environment, cancellationToken);
            if (placement is null or { NodeRank: 0 }) Print(checks);
            console.Out.WriteLine($"{checks.Count(check => check.IsPassed)} of {checks.Count} comparisons are within tolerance.");
            return Task.FromResult(checks.All(check => check.IsPassed) ? ExitCode.Ok : ExitCode.Failed);
        }
        catch (RankFaultException fault)
        {
            console.Error.WriteLine($"error: RANK001 {fault.Message}");
            return Task.FromResult(ExitCode.Failed);
        }
    }

    private void Print(IReadOnlyList<GoldenCheck> checks)
    {
        var table = new Table { Border = TableBorder.Ascii };
        table.AddColumns("compared", "difference", "allowed", "measure", "worst at", "");
        foreach (var check in checks)
        {
            table.AddRow(
                check.Name, Number(check.Difference), Number(check.Tolerance), Markup.Escape(check.Measure), Markup.Escape(check.Worst),
                check.IsPassed ? "ok" : "FAILED");
        }
        var settings = new AnsiConsoleSettings { Out = new AnsiConsoleOutput(console.Out), ColorSystem = ColorSystemSupport.NoColors };
        var writer = AnsiConsole.Create(settings);
        writer.Profile.Width = 140;
        writer.Write(table);
    }

    private static string Number(double value) => value.ToString(value is 0 or double.PositiveInfinity ? "0" : "0.00e+00", CultureInfo.InvariantCulture);
}
