using System.Globalization;
using System.Text.Json;
using Megatron.Testing.Processes;

namespace Megatron.Faults;

/// <summary>How a job came back after one fault, read from the events that its console showed.</summary>
/// <param name="Detection">From the fault to the job's decision to recover.</param>
/// <param name="FirstStep">From the fault to the first optimizer step of the next attempt.</param>
/// <param name="NumRecomputed">Optimizer steps that were done twice.</param>
/// <param name="Plan">What the job said it would do.</param>
public sealed record Recovery(TimeSpan Detection, TimeSpan FirstStep, long NumRecomputed, string Plan)
{
    /// <summary>A recovery that takes longer is told phase by phase.</summary>
    private static readonly TimeSpan longRecovery = TimeSpan.FromSeconds(4);

    /// <summary>Waits for the recovery from a fault at <paramref name="faultAt"/>.</summary>
    /// <param name="from">Number of lines that the console had printed before the fault.</param>
    public static async Task<Recovery> ObserveAsync(ConsoleProcess console, DateTimeOffset faultAt, int from, CancellationToken cancellation)
    {
        JsonElement? detected = null, planned = null;
        long lastBefore = LastStep(console, from);
        var (step, _) = await console.WaitForAsync("first step of the next attempt", item =>
        {
            if (ConsoleProcess.IsPhase(item, "Recovering")) detected ??= item;
            else if (ConsoleProcess.IsAttempt(item, out _) && detected is not null) planned = item;
            if (!ConsoleProcess.IsStep(item, out long iteration)) return false;
            if (planned is not null) return true;
            lastBefore = iteration; // reported between the fault and its discovery
            return false;
        }, FaultCluster.Patience, cancellation, from);
        return new Recovery(
            ConsoleProcess.TimeOf(detected ?? throw new InvalidOperationException("no recovery")) - faultAt, ConsoleProcess.TimeOf(step) - faultAt,
            Math.Max(0, lastBefore - step.GetProperty("iteration").GetInt64() + 1), planned?.GetProperty("reason").GetString() ?? "");
    }

    /// <summary>Tells what the job went through from the fault to its first step, with seconds since the fault, when that took long.</summary>
    public static void Explain(ConsoleProcess console, DateTimeOffset faultAt, TimeSpan firstStep, TextWriter log)
    {
        if (firstStep < longRecovery) return;
        foreach (var item in console.Events.Where(item => item.GetProperty("event").GetString() is "phase" or "console" && ConsoleProcess.TimeOf(item) >= faultAt))
        {
            string what = item.TryGetProperty("phase", out var phase) ? $"{phase.GetString()}, {item.GetProperty("reason").GetString()}" : item.GetProperty("text").GetString() ?? "";
            log.WriteLine(string.Create(CultureInfo.InvariantCulture, $"    {(ConsoleProcess.TimeOf(item) - faultAt).TotalSeconds:F2} s: {what}"));
        }
    }

    private static long LastStep(ConsoleProcess console, int before) => console.Process.Lines.Take(before)
        .Where(line => !line.IsError && line.Text.StartsWith('{')).Select(line => JsonSerializer.Deserialize<JsonElement>(line.Text))
        .Select(item => ConsoleProcess.IsStep(item, out long iteration) ? iteration : 0).LastOrDefault(iteration => iteration > 0);
}
