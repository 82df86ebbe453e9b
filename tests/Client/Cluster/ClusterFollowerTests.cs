using Megatron.Client.Cluster;
using Megatron.Client.Jobs;
using Megatron.Compute.Training;
using Megatron.Grains.Jobs;
using Megatron.Testing;

namespace Megatron.Client.Tests.Cluster;

/// <summary>A console goes on after whatever it has lost, and says so when the user has seen something of it.</summary>
public sealed class ClusterFollowerTests
{
    // A gateway that stands still is left out after a while: questions get their answers through another one, and the watch would wait for half a minute.
    [Fact]
    public async Task Follow_AnAnswerAfterAnUnansweredQuestion_WatchesAnewAndSaysNothing()
    {
        var job = new FakeJob().Answers().Answers(isLost: true).Answers().Shows(ends: false, Notice(1)).Shows(ends: true, Notice(2), End(3));
        var console = new Lines();
        Assert.Equal(0, await FollowAsync(job, console));
        Assert.Equal([1L, 2], job.WatchedFrom);
        Assert.Equal([1L, 2, 3], console.Shown);
        Assert.Empty(console.Said);
    }

    [Fact]
    public async Task Follow_TwoUnansweredQuestions_SaysThatTheJobWasLostAndFound()
    {
        var job = new FakeJob().Answers().Answers(isLost: true).Answers(isLost: true).Shows(ends: false, Notice(1)).Shows(ends: true, End(2));
        var console = new Lines();
        Assert.Equal(0, await FollowAsync(job, console));
        Assert.Equal([1L, 2], console.Shown);
        Assert.Contains("connection to the job lost (the job did not answer); found again", Assert.Single(console.Said), StringComparison.Ordinal);
    }

    private static async Task<int?> FollowAsync(FakeJob job, Lines console)
    {
        var time = new ManualTime();
        var following = new ClusterFollower(job, console, time).FollowAsync(new TaskCompletionSource().Task, TestContext.Current.CancellationToken);
        for (int i = 0; i < 100 && !following.IsCompleted; i++)
        {
            SpinWait.SpinUntil(() => following.IsCompleted || time.NumTimers > 0);
            time.Advance(TimeSpan.FromMilliseconds(500));
        }
        return await following.WaitAsync(TimeSpan.FromMinutes(1));
    }

    private static JobNotice Notice(long sequence) => new(sequence, default, 0, RankNoticeLevel.Information, "text");

    private static JobPhaseChanged End(long sequence) => new(sequence, default, JobPhase.Completed, 1, "done", new JobOutcome(0, "done"));

    private sealed class Lines : IJobConsole
    {
        public List<long> Shown { get; } = [];

        public List<string> Said { get; } = [];

        public void Show(JobEvent item) => Shown.Add(item.Sequence);

        public void Say(string line) => Said.Add(line);

        public void SayError(string line) => Said.Add(line);
    }
}
