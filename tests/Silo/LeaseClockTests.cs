using Megatron.Testing;

namespace Megatron.Silo.Tests;

public sealed class LeaseClockTests
{
    private static readonly TimeSpan look = TimeSpan.FromMilliseconds(200);

    [Fact]
    public void Look_WithoutContact_IsLostAfterTwoAndAHalfSecondsAndExpiredAfterNine()
    {
        var time = new ManualTime();
        var lease = new LeaseClock(time);
        var states = new List<(LeaseState State, TimeSpan At)>();
        for (var at = TimeSpan.Zero; at <= TimeSpan.FromSeconds(11); at += look)
        {
            var state = lease.Look();
            if (states.Count == 0 || states[^1].State != state) states.Add((state, at));
            time.Advance(look);
        }
        Assert.Equal(
            [(LeaseState.Held, TimeSpan.Zero), (LeaseState.Lost, TimeSpan.FromSeconds(2.6)), (LeaseState.Expired, TimeSpan.FromSeconds(9.2))], states);
    }

    [Fact]
    public void Renew_CountsFromTheTimeOfAskingNotOfTheAnswer()
    {
        var time = new ManualTime();
        var lease = new LeaseClock(time);
        long askedAt = time.GetTimestamp();
        for (int i = 0; i < 13; i++) { time.Advance(look); lease.Look(); }
        lease.Renew(askedAt);
        Assert.Equal(LeaseState.Lost, lease.Look());
        lease.Renew(time.GetTimestamp());
        Assert.Equal(LeaseState.Held, lease.Look());
    }

    [Fact]
    public void Look_AfterAPauseOfTheProcess_IsLostOnceEvenWhenTheContactLooksFresh()
    {
        var time = new ManualTime();
        var lease = new LeaseClock(time);
        time.Advance(TimeSpan.FromSeconds(30));
        lease.Renew(time.GetTimestamp());
        Assert.Equal(LeaseState.Lost, lease.Look());
        time.Advance(look);
        Assert.Equal(LeaseState.Held, lease.Look());
    }

    [Theory]
    [InlineData(1, 1, true)]
    [InlineData(1, 2, false)]
    [InlineData(2, 2, true)]
    [InlineData(2, 3, true)]
    [InlineData(1, 3, false)]
    [InlineData(2, 4, false)]
    public void IsMajority_MoreThanHalfOfAll(int reached, int members, bool isMajority) => Assert.Equal(isMajority, LeaseClock.IsMajority(reached, members));
}
