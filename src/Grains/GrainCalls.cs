using Microsoft.Extensions.Logging;

namespace Megatron.Grains;

/// <summary>Calls whose answer nobody waits for.</summary>
internal static class GrainCalls
{
    /// <summary>Lets a call go on by itself; when it fails, the log says so. Only for messages that are repeated or made good elsewhere.</summary>
    public static void Send(Task call, ILogger logger, string what) => _ = ObserveAsync(call, logger, what);

    private static async Task ObserveAsync(Task call, ILogger logger, string what)
    {
        try
        {
            await call;
        }
        catch (Exception fault)
        {
            GrainLog.CallFailed(logger, what, fault.Message);
        }
    }
}
