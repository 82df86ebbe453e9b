using Megatron.Compute.Optimizers;

namespace Megatron.Compute.Tests.Optimizers;

public sealed class LossScalerTests
{
    [Fact]
    public void Update_ConstantScale_NeverChanges()
    {
        var scaler = new LossScaler(new LossScalerOptions { LossScale = 128 });
        for (var i = 0; i < 5; i++) scaler.Update(isFinite: false);
        Assert.Equal(128, scaler.Scale);
    }

    [Fact]
    public void Update_Overflows_HalvesOnlyAfterHysteresis()
    {
        var scaler = new LossScaler(new LossScalerOptions { Hysteresis = 2 });
        Assert.Equal(Math.Pow(2, 32), scaler.Scale);
        scaler.Update(isFinite: false);
        Assert.Equal(Math.Pow(2, 32), scaler.Scale);
        scaler.Update(isFinite: false);
        Assert.Equal(Math.Pow(2, 31), scaler.Scale);
        scaler.Update(isFinite: false); // the hysteresis is spent until the scale grows again
        Assert.Equal(Math.Pow(2, 30), scaler.Scale);
    }

    [Fact]
    public void Update_WindowOfFiniteSteps_DoublesAndRestoresHysteresis()
    {
        var scaler = new LossScaler(new LossScalerOptions { InitialLossScale = 8, LossScaleWindow = 3, Hysteresis = 2 });
        scaler.Update(isFinite: false);
        for (var i = 0; i < 2; i++) scaler.Update(isFinite: true);
        Assert.Equal(8, scaler.Scale);
        scaler.Update(isFinite: true);
        Assert.Equal(new LossScalerState(16, 0, 2), scaler.State);
    }

    [Fact]
    public void Update_OverflowInsideWindow_StartsCountingAnew()
    {
        var scaler = new LossScaler(new LossScalerOptions { InitialLossScale = 8, LossScaleWindow = 2, Hysteresis = 5 });
        scaler.Update(isFinite: true);
        scaler.Update(isFinite: false);
        scaler.Update(isFinite: true);
        Assert.Equal(8, scaler.Scale);
    }

    [Fact]
    public void Update_ManyOverflows_StopsAtMinimum()
    {
        var scaler = new LossScaler(new LossScalerOptions { InitialLossScale = 4, MinLossScale = 2, Hysteresis = 1 });
        for (var i = 0; i < 5; i++) scaler.Update(isFinite: false);
        Assert.Equal(2, scaler.Scale);
    }

    [Fact]
    public void State_SetOnAnotherScaler_ContinuesThere()
    {
        var options = new LossScalerOptions { InitialLossScale = 8, LossScaleWindow = 2 };
        var first = new LossScaler(options);
        first.Update(isFinite: true);
        var second = new LossScaler(options) { State = first.State };
        second.Update(isFinite: true);
        Assert.Equal(16, second.Scale);
    }
}
