using System.Text.Json;
using Megatron.Faults;

namespace Megatron.EndToEnd.Tests;

/// <summary>The checker itself: it passes a good history and names each kind of bad one.</summary>
public sealed class HistoryCheckerTests
{
    [Fact]
    public void Ledger_OfARecoveredRun_IsConsistent() => Assert.Empty(HistoryChecker.CheckLedger(Ledger((1, 1, "a"), (2, 1, "b"), (3, 1, "c"), (2, 2, "b"), (3, 2, "c"), (4, 2, "d"))));

    [Theory]
    [InlineData("1 1 a, 2 2 b, 3 1 c", "step 3 of attempt 1 follows attempt 2")]
    [InlineData("1 1 a, 3 1 c", "step 3 follows step 1 in attempt 1")]
    [InlineData("1 1 a, 1 1 a", "step 1 follows step 1 in attempt 1")]
    [InlineData("1 1 a, 3 2 c", "attempt 2 begins with step 3, but step 2 was never done")]
    [InlineData("1 1 a, 2 1 b, 2 2 x", "step 2 has batch x in attempt 2 and b before")]
    public void Ledger_OfABrokenRun_IsNamed(string lines, string problem)
    {
        var ledger = lines.Split(", ").Select(line => line.Split(' ')).Select(words => (long.Parse(words[0]), long.Parse(words[1]), words[2])).ToArray();
        Assert.Equal([problem], HistoryChecker.CheckLedger(Ledger(ledger)));
    }

    [Fact]
    public void Logs_WithAStartThatNobodyAnnounced_AreNamed()
    {
        var records = Records(
            """{"@t":"2026-01-01T00:00:00Z","JobId":"j","Attempt":1,"Phase":"Starting"}""",
            """{"@t":"2026-01-01T00:00:01Z","JobId":"j","Attempt":1,"Rank":0,"Command":"StartRank"}""",
            """{"@t":"2026-01-01T00:00:02Z","JobId":"j","Attempt":2,"Rank":0,"Command":"StartRank"}""",
            """{"@t":"2026-01-01T00:00:03Z","JobId":"j","Attempt":1,"Rank":0,"Command":"StartRank"}""",
            """{"@t":"2026-01-01T00:00:03Z","JobId":"other","Attempt":9,"Rank":0,"Command":"StartRank"}""");
        Assert.Equal(["rank 0 was started under attempt 2, which no job announced", "rank 0 was started 2 times under attempt 1"], HistoryChecker.CheckLogs(records, "j"));
    }

    [Fact]
    public void Checkpoints_TheNewestMustBeThere() =>
        Assert.Equal(["the committed checkpoint /nowhere/iter_0000002 has no manifest on disk"], HistoryChecker.CheckCheckpoints(["/nowhere/iter_0000002"]));

    private static List<JsonElement> Ledger(params (long Step, long Attempt, string Batch)[] lines) =>
        [.. lines.Select(line => JsonSerializer.SerializeToElement(new { step = line.Step, attempt = line.Attempt, batch = line.Batch }))];

    private static List<JsonElement> Records(params string[] lines) => [.. lines.Select(line => JsonSerializer.Deserialize<JsonElement>(line))];
}
