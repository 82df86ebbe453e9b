using Megatron.Grains.Jobs;

namespace Megatron.Grains.Tests.Jobs;

public sealed class JobEventLogTests
{
    [Fact]
    public async Task ReadFrom_AfterTheRingTurned_SaysHowManyWereLost()
    {
        var log = new JobEventLog(3);
        for (int index = 0; index < 5; index++)
            log.Append(Create);
        log.Complete();
        var seen = await ReadAsync(log, 2);
        Assert.Equal(1, Assert.IsType<JobEventsSkipped>(seen[0]).NumSkipped);
        Assert.Equal([3L, 4L, 5L], seen.Skip(1).Select(item => item.Sequence));
    }

    [Fact]
    public async Task ReadFrom_WhileWriting_GetsEveryEventOnce()
    {
        var log = new JobEventLog(10);
        log.Append(Create);
        await using var reader = log.ReadFrom(0, CancellationToken.None).GetAsyncEnumerator();
        Assert.True(await reader.MoveNextAsync());
        var waiting = reader.MoveNextAsync().AsTask();
        Assert.False(waiting.IsCompleted);
        log.Append(Create);
        Assert.True(await waiting);
        Assert.Equal(2, reader.Current.Sequence);
        var end = reader.MoveNextAsync().AsTask();
        log.Complete();
        Assert.False(await end);
    }

    [Fact]
    public async Task ReadFrom_Cancelled_Stops()
    {
        var log = new JobEventLog(10);
        using var cancellation = new CancellationTokenSource();
        await using var reader = log.ReadFrom(1, cancellation.Token).GetAsyncEnumerator();
        var waiting = reader.MoveNextAsync().AsTask();
        await cancellation.CancelAsync();
        await Assert.ThrowsAnyAsync<OperationCanceledException>(() => waiting);
    }

    private static JobPhaseChanged Create(long sequence) => new(sequence, DateTimeOffset.UnixEpoch, JobPhase.Running, 1, "", null);

    private static async Task<List<JobEvent>> ReadAsync(JobEventLog log, long from)
    {
        List<JobEvent> seen = [];
        await foreach (var item in log.ReadFrom(from, CancellationToken.None))
            seen.Add(item);
        return seen;
    }
}
