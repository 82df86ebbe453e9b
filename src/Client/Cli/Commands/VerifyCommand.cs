using System.Globalization;
using Megatron.Compute.Native;
using Megatron.Compute.Training;
using Spectre.Console;

namespace Megatron.Client.Cli.Commands;

/// <summary><c>megatron verify</c>: comparison with a golden folder.</summary>
/// <param name="console">Where to print.</param>
public sealed class VerifyCommand(CommandConsole console) : IVerbCommand
{
    /// <inheritdoc/>
    public Task<int> RunAsync(ParsedOptions options, CancellationToken cancellationToken)
    {
        options.Environment.RequireOneNode(options.Verb);
        var worldSize = options.Environment.WorldSize;
        var libTorch = new LibTorchOptions { Folder = options.Environment.LibTorch };
        LibTorch.Load(libTorch);
        var environment = RankEnvironment.InProcess(libTorch, TimeProvider.System, worldSize);
        var checks = GoldenRun.Run(options.Config, worldSize, environment);
        Print(checks);
        return Task.FromResult(checks.All(check => check.IsPassed) ? ExitCode.Ok : ExitCode.Failed);
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
        console.Out.WriteLine($"{checks.Count(check => check.IsPassed)} of {checks.Count} comparisons are within tolerance.");
    }

    private static string Number(double value) => value.ToString(value is 0 or double.PositiveInfinity ? "0" : "0.00e+00", CultureInfo.InvariantCulture);
}
