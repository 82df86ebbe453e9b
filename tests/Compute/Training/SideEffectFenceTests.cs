using Megatron.Compute.Training;

namespace Megatron.Compute.Tests.Training;

public sealed class SideEffectFenceTests
{
    [Fact]
    public void Open_AfterClose_LetsPassAgain()
    {
        var fence = new SideEffectFence();
        fence.Close("it is cut off");
        Assert.Equal("This silo may not write: it is cut off.", Assert.Throws<IOException>(fence.Check).Message);
        fence.Open();
        fence.Check();
    }

    // A rank that hung and wakes up while its silo leaves must find it closed, though the silo's lease is held.
    [Fact]
    public void Open_AfterItWasClosedForGood_ChangesNothing()
    {
        var fence = new SideEffectFence();
        fence.CloseForGood("a rank hangs");
        fence.Open();
        Assert.Equal(("a rank hangs", true), (fence.Reason, fence.IsFinal));
        Assert.Throws<IOException>(fence.Check);
    }
}
