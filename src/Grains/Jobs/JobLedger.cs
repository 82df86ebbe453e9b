using System.Globalization;
using System.Text.Json;
using Megatron.Grains.Stages;

namespace Megatron.Grains.Jobs;

/// <summary>
/// One line per optimizer step in <c>ledger.jsonl</c> of the run folder: enough to check that a run with faults took the same steps as one
/// without. A step that was repeated after a fault stands there once per attempt.
/// </summary>
public static class JobLedger
{
    /// <summary>Name of the file in the run folder.</summary>
    public const string FileName = "ledger.jsonl";

    // Many lines, and little to read.
    private const int TailBytes = 64 << 10;

    /// <summary>The line of a step.</summary>
    /// <param name="time">When the job heard of it.</param>
    public static string Line(int attempt, StageStepReport step, JobLayout grid, int worldSize, DateTimeOffset time) => JsonSerializer.Serialize(new
    {
        step = step.Iteration,
        attempt,
        batch = step.BatchHash.ToString("x16", CultureInfo.InvariantCulture),
        loss = step.Loss,
        loss_bits = BitConverter.SingleToInt32Bits((float)step.Loss).ToString("x8", CultureInfo.InvariantCulture),
        grad_norm = step.GradNorm,
        skipped = step.Skipped,
        step_ms = step.StepTime.TotalMilliseconds,
        time = time.UtcDateTime.ToString("O", CultureInfo.InvariantCulture),
        layout = string.Create(CultureInfo.InvariantCulture, $"tp{grid.TensorSize} cp{grid.ContextSize} pp{grid.PipelineSize} ep{grid.ExpertSize} dp{worldSize / grid.ReplicaSize}"),
    }, options);

    // A loss that is not a number is no valid JSON number; the line must be written all the same.
    private static readonly JsonSerializerOptions options = new() { NumberHandling = System.Text.Json.Serialization.JsonNumberHandling.AllowNamedFloatingPointLiterals };

    /// <summary>Appends lines to the ledger of a run; nothing is written when the folder does not exist on this machine.</summary>
    public static async Task AppendAsync(string folder, IReadOnlyList<string> lines)
    {
        if (Directory.Exists(folder))
            await File.AppendAllLinesAsync(Path.Combine(folder, FileName), lines);
    }

    /// <summary>Step of the last whole line; 0 when there is none on this machine.</summary>
    public static async Task<long> ReadLastStepAsync(string folder)
    {
        string path = Path.Combine(folder, FileName);
        if (!File.Exists(path))
            return 0;
        await using var file = new FileStream(path, FileMode.Open, FileAccess.Read, FileShare.ReadWrite);
        file.Seek(-Math.Min(file.Length, TailBytes), SeekOrigin.End);
        using var reader = new StreamReader(file);
        string? line = (await reader.ReadToEndAsync()).Split('\n').LastOrDefault(line => line.StartsWith('{') && line.EndsWith('}'));
        return line is null ? 0 : JsonSerializer.Deserialize<JsonElement>(line).GetProperty("step").GetInt64();
    }
}
