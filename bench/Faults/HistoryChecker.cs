using System.Globalization;
using System.Text.Json;

namespace Megatron.Faults;

/// <summary>
/// Compares what the control plane said, what the silos heard and what the ledger and the disk hold: attempts only grow, nothing of an old attempt
/// follows a newer one, each step of an attempt stands there once and in order, a step has the same batch in every attempt, committed
/// checkpoints exist, and no rank started under an attempt that nobody announced.
/// </summary>
public static class HistoryChecker
{
    /// <summary>What is wrong with a ledger, in sentences; nothing when it is consistent.</summary>
    /// <param name="ledger">Lines of <c>ledger.jsonl</c> in their order.</param>
    public static IReadOnlyList<string> CheckLedger(IReadOnlyList<JsonElement> ledger)
    {
        var problems = new List<string>();
        var batches = new Dictionary<long, string>();
        long attempt = 0, step = 0, highest = 0;
        foreach (var line in ledger)
        {
            long lineAttempt = line.GetProperty("attempt").GetInt64(), lineStep = line.GetProperty("step").GetInt64();
            string batch = line.GetProperty("batch").GetString() ?? "";
            if (lineAttempt < attempt)
                problems.Add(Text($"step {lineStep} of attempt {lineAttempt} follows attempt {attempt}"));
            else if (lineAttempt == attempt && lineStep != step + 1)
                problems.Add(Text($"step {lineStep} follows step {step} in attempt {attempt}"));
            else if (lineAttempt > attempt && lineStep > highest + 1)
                problems.Add(Text($"attempt {lineAttempt} begins with step {lineStep}, but step {highest + 1} was never done"));
            if (batches.TryGetValue(lineStep, out var known) && known != batch)
                problems.Add(Text($"step {lineStep} has batch {batch} in attempt {lineAttempt} and {known} before"));
            batches[lineStep] = batch;
            (attempt, step, highest) = (lineAttempt, lineStep, Math.Max(highest, lineStep));
        }
        return problems;
    }

    /// <summary>What is wrong between the silos' logs: starts of ranks that no job announced, attempts that went back.</summary>
    /// <param name="records">Lines of all silos' JSON logs.</param>
    public static IReadOnlyList<string> CheckLogs(IEnumerable<JsonElement> records, string jobId)
    {
        var problems = new List<string>();
        var ordered = records.Where(record => Field(record, "JobId") == jobId)
            .OrderBy(record => record.GetProperty("@t").GetDateTimeOffset()).ToList();
        var announced = new HashSet<long>();
        long newest = 0;
        foreach (var record in ordered.Where(record => record.TryGetProperty("Phase", out _)))
        {
            long attempt = record.GetProperty("Attempt").GetInt64();
            if (attempt < newest) problems.Add(Text($"the job spoke of attempt {attempt} after attempt {newest}"));
            newest = Math.Max(newest, attempt);
            announced.Add(attempt);
        }
        foreach (var record in ordered.Where(record => Field(record, "Command") == "StartRank" && record.TryGetProperty("Rank", out _)))
        {
            long attempt = record.GetProperty("Attempt").GetInt64();
            if (!announced.Contains(attempt)) problems.Add(Text($"rank {Field(record, "Rank")} was started under attempt {attempt}, which no job announced"));
        }
        foreach (var twice in ordered.Where(record => Field(record, "Command") == "StartRank" && record.TryGetProperty("Rank", out _))
            .GroupBy(record => (Field(record, "Attempt"), Field(record, "Rank"))).Where(group => group.Count() > 1))
            problems.Add(Text($"rank {twice.Key.Item2} was started {twice.Count()} times under attempt {twice.Key.Item1}"));
        return problems;
    }

    /// <summary>What is wrong with the checkpoints: the newest that was committed must be on disk; older ones may have been cleared away.</summary>
    /// <param name="committed">Folders in the order in which the job announced them.</param>
    public static IReadOnlyList<string> CheckCheckpoints(IReadOnlyList<string> committed) =>
        committed.Count == 0 || File.Exists(Path.Combine(committed[^1], "manifest.json")) ? [] : [$"the committed checkpoint {committed[^1]} has no manifest on disk"];

    /// <summary>Reads the JSON lines of all logs in a folder; a line that is still being written is left out.</summary>
    public static IReadOnlyList<JsonElement> ReadLogs(string folder) => Directory.Exists(folder)
        ? [.. Directory.GetFiles(folder, "*.clef").SelectMany(ReadShared).Where(line => line.EndsWith('}')).Select(line => JsonSerializer.Deserialize<JsonElement>(line))]
        : [];

    private static IEnumerable<string> ReadShared(string path)
    {
        using var reader = new StreamReader(new FileStream(path, FileMode.Open, FileAccess.Read, FileShare.ReadWrite));
        while (reader.ReadLine() is { } line) yield return line;
    }

    private static string? Field(JsonElement record, string name) => record.TryGetProperty(name, out var value) ? value.ToString() : null;

    private static string Text(FormattableString text) => text.ToString(CultureInfo.InvariantCulture);
}
