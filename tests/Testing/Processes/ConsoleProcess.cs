using System.Text.Json;

namespace Megatron.Testing.Processes;

/// <summary>A console that follows a job with <c>--output json</c>; its events can be awaited.</summary>
public sealed class ConsoleProcess : IAsyncDisposable
{
    private ConsoleProcess(ProgramProcess process) => Process = process;

    /// <summary>The process.</summary>
    public ProgramProcess Process { get; }

    /// <summary>The events so far.</summary>
    public IReadOnlyList<JsonElement> Events => [.. Process.Lines.Select(EventOf).OfType<JsonElement>()];

    /// <summary>Starts <c>megatron</c> with the words and <c>--output json</c>.</summary>
    /// <param name="environment">Variables set for it.</param>
    public static ConsoleProcess Start(IEnumerable<string> words, IReadOnlyDictionary<string, string?>? environment = null) =>
        new(ProgramProcess.StartMegatron([.. words, "--output", "json"], environment));

    /// <summary>The first event that is wanted, and when this process read it; waits for it.</summary>
    /// <param name="from">Index of the first line looked at: the number of <see cref="ProgramProcess.Lines"/> at some moment.</param>
    public async Task<(JsonElement Event, DateTimeOffset Time)> WaitForAsync(
        string what, Func<JsonElement, bool> isWanted, TimeSpan timeout, CancellationToken cancellation, int from = 0)
    {
        var line = await Process.WaitForLineAsync(what, line => EventOf(line) is { } item && isWanted(item), timeout, cancellation, from);
        return (EventOf(line) ?? default, line.Time);
    }

    /// <summary>Waits for a step of at least this number, of at least this attempt.</summary>
    public Task<(JsonElement Event, DateTimeOffset Time)> WaitForStepAsync(long iteration, TimeSpan timeout, CancellationToken cancellation, int from = 0) =>
        WaitForAsync($"step {iteration}", item => IsStep(item, out long step) && step >= iteration, timeout, cancellation, from);

    /// <summary>Whether an event is a step, and which.</summary>
    public static bool IsStep(JsonElement item, out long iteration)
    {
        iteration = 0;
        return Kind(item) == "step" && item.GetProperty("iteration").TryGetInt64(out iteration);
    }

    /// <summary>Whether an event is the beginning of a phase.</summary>
    public static bool IsPhase(JsonElement item, string phase) =>
        Kind(item) == "phase" && string.Equals(item.GetProperty("phase").GetString(), phase, StringComparison.OrdinalIgnoreCase);

    /// <summary>Whether an event is the beginning of an attempt, and which.</summary>
    public static bool IsAttempt(JsonElement item, out int attempt)
    {
        attempt = IsPhase(item, "Starting") ? item.GetProperty("attempt").GetInt32() : 0;
        return attempt > 0;
    }

    /// <summary>When the job wrote an event, by the clock of this machine.</summary>
    public static DateTimeOffset TimeOf(JsonElement item) => item.GetProperty("time").GetDateTimeOffset();

    /// <inheritdoc/>
    public ValueTask DisposeAsync() => Process.DisposeAsync();

    private static string? Kind(JsonElement item) => item.GetProperty("event").GetString();

    private static JsonElement? EventOf(OutputLine line) =>
        !line.IsError && line.Text.StartsWith('{') ? JsonSerializer.Deserialize<JsonElement>(line.Text) : null;
}
