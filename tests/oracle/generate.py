SCENARIOS={}
def scenario(n,s): return [],[]
