using System.Collections;
using Megatron.Compute.Checkpointing;
using Megatron.Compute.Models;
using Megatron.Compute.PipelineParallel;
using Megatron.Compute.Training;
using Megatron.Compute.Training.Snapshots;
using Microsoft.Extensions.DependencyInjection;
using Orleans.Serialization;

namespace Megatron.Grains.Tests.Wire;

/// <summary>Every record of the waist goes through the serializer unchanged.</summary>
public sealed class SurrogateTests
{
    private static readonly AttemptId attempt = new("job", 3);

    private static readonly CheckpointReceipt receipt = new(attempt, 1, "s", 7, [new CheckpointFile("model.safetensors", 9, "ab")], "{\"a\":1}");

    private static readonly object[] samples =
    [
        new StartRank(attempt, "{\"lr\":1}", 1, 2, 3, "local:x", "/iter")
        {
            Work = new StageWork([new StageLayout(0, 2, true, false), new StageLayout(4, 6, false, false)], PipelineScheduleKind.Interleaved), SnapshotPartners = [1, 0], NumThreads = 4,
        },
        new StopRank(attempt, true, "signal"), new AbortRank(attempt, "peer"),
        new CommitCheckpoint(attempt, "s", 7, [receipt]), new RankStarted(attempt, 1, 2, 3, 4),
        new TrainingPlanned(attempt, 1, 100, 5, 16), new EvaluationReport(attempt, 1, 10, 2.5, 3.5, true),
        new StepReport(attempt, 1, 2, 3.5, 4.5, 5, 6.5, 7.5, 8.5, true, 9, TimeSpan.FromTicks(10)) { FloatingPointOperations = 11.5, LoadBalancingLoss = 12.5, ZLoss = 13.5, ComputeTime = TimeSpan.FromTicks(14), PipelineWait = TimeSpan.FromTicks(15), TokensPerExpert = new long[] { 16, 17 } },
        new RankNotice(attempt, 1, RankNoticeLevel.Warning, "text"), new RankBusy(attempt, 1, "the checkpoint"), receipt, new CheckpointCommitted(attempt, 1, "s", 7, "/iter"),
        new RankFinished(attempt, 1, 2, true), new RankFaulted(attempt, 1, "message", true, "detail"),
    ];

    [Fact]
    public void Samples_CoverEveryRecordOfTheWaist()
    {
        var records = typeof(RankCommand).Assembly.GetTypes()
            .Where(type => !type.IsAbstract && (type.IsSubclassOf(typeof(RankCommand)) || type.IsSubclassOf(typeof(RankReport))));
        Assert.Empty(records.Except(samples.Select(sample => sample.GetType())).Select(type => type.Name));
    }

    [Fact]
    public void EveryRecord_AfterARoundTrip_HasTheSameProperties()
    {
        using var services = new ServiceCollection().AddSerializer(builder => builder.AddAssembly(typeof(GrainServices).Assembly)).BuildServiceProvider();
        var serializer = services.GetRequiredService<Serializer>();
        foreach (object sample in samples)
        {
            object? back = sample is RankCommand command
                ? serializer.Deserialize<RankCommand>(serializer.SerializeToArray(command))
                : serializer.Deserialize<RankReport>(serializer.SerializeToArray((RankReport)sample));
            Assert.Equivalent(sample, back, strict: true);
            Assert.Equal(Text(sample), Text(back));
        }
    }

    [Fact]
    public void SnapshotRecords_AfterARoundTrip_AreTheSame()
    {
        using var services = new ServiceCollection().AddSerializer(builder => builder.AddAssembly(typeof(GrainServices).Assembly)).BuildServiceProvider();
        var serializer = services.GetRequiredService<Serializer>();
        var holding = new SnapshotHolding(2, 37, 4, [0, 3]);
        Assert.Equal(Text(holding), Text(serializer.Deserialize<SnapshotHolding>(serializer.SerializeToArray(holding))));
        var order = new SnapshotOrder(attempt, 2, 37, [0, 3]);
        Assert.Equal(Text(order), Text(serializer.Deserialize<SnapshotOrder>(serializer.SerializeToArray(order))));
    }

    private static string Text(object? value) => value switch
    {
        null => "null",
        IEnumerable list and not string => "[" + string.Join(",", list.Cast<object>().Select(Text)) + "]",
        string or ValueType => FormattableString.Invariant($"{value}"),
        _ => value.GetType().Name + "{" + string.Join(",", value.GetType().GetProperties()
            .Where(property => property.GetIndexParameters().Length == 0).Select(property => Text(property.GetValue(value)))) + "}",
    };
}
